package kafka_test

import (
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/internal/doctor"
)

// examine has the doctor look at a topic with a configuration, where claims are kept for
// ten days.
func examine(t *testing.T, configs map[string]string) (topic string, findings []doctor.Finding) {
	t.Helper()
	b := newBench(t, 2)
	topic = b.topic + "-examined"
	values := make(map[string]*string)
	for name, value := range configs {
		values[name] = kadm.StringPtr(value)
	}
	created, err := b.admin.CreateTopic(within(t), 2, 1, values, topic)
	must(t, err)
	must(t, created.Err)
	until(t, "the broker knows of the topic", func() bool {
		topics, err := b.admin.ListTopics(within(t), topic)
		return err == nil && topics[topic].Err == nil
	})
	k := doctor.Kafka{Client: b.client, Brokers: strings.Join(b.seeds, ","), Briefing: doctor.Briefing{Topics: []string{topic}, Kept: 10 * 24 * time.Hour}}
	return topic, k.Check(within(t))
}

// TestTheDoctorLooksAtTopics is about the server's defaults, which have one replica here,
// and about what can be wrong besides.
func TestTheDoctorLooksAtTopics(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		configs map[string]string
		level   doctor.Level
		check   string
		words   []string
	}{
		"one replica":      {nil, doctor.Warn, "replicas", []string{"has one replica", "disk", "min.insync.replicas 2"}},
		"too few replicas": {map[string]string{"min.insync.replicas": "2"}, doctor.Fail, "replicas", []string{"min.insync.replicas is 2", "wait in the outbox"}},
		"kept for ever":    {map[string]string{"retention.ms": "-1"}, doctor.Warn, "retention", []string{"keeps records for ever", "claims are kept for 10 days", "retention.ms=864000000"}},
		"kept too long":    {map[string]string{"retention.ms": "9223372036854775807"}, doctor.Warn, "retention", []string{"keeps records for ever"}},
		"kept longer":      {map[string]string{"retention.ms": "2592000000"}, doctor.Warn, "retention", []string{"keeps records for 30 days"}},
		"unclean":          {map[string]string{"unclean.leader.election.enable": "true"}, doctor.Warn, "unclean leaders", []string{"unclean.leader.election.enable=false"}},
		"compacted":        {map[string]string{"cleanup.policy": "compact"}, doctor.Warn, "compaction", []string{"without a key", "oncemill-ordering-key"}},
		"small batches":    {map[string]string{"max.message.bytes": "1000"}, doctor.Warn, "limits", []string{"1000 bytes", "parked"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic, findings := examine(t, test.configs)
			prescribes(t, findings, test.level, test.check, append(test.words, topic)...)
			if test.configs == nil {
				for _, f := range findings {
					if f.Level != doctor.OK && f.Check != "replicas" {
						t.Errorf("the defaults: %v", f)
					}
				}
			}
		})
	}
}

func TestTheDoctorNamesTopicsThatAreMissingAndBrokersThatAreAway(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	k := doctor.Kafka{Client: b.client, Briefing: doctor.Briefing{Topics: []string{b.topic, "no-such-topic"}}}
	prescribes(t, k.Check(within(t)), doctor.Fail, "topic", `there is no topic "no-such-topic"`, "--create --topic no-such-topic")
	topics, err := b.admin.ListTopics(within(t))
	must(t, err)
	if topics.Has("no-such-topic") {
		t.Error("the doctor has made the topic")
	}
	away := b.connect(kgo.SeedBrokers("127.0.0.1:1"))
	prescribes(t, (&doctor.Kafka{Client: away, Brokers: "127.0.0.1:1"}).Check(within(t)), doctor.Fail, "connection", "127.0.0.1:1 cannot be reached", "--kafka-brokers")
}

func TestTheDoctorNamesGroupsThatNobodyWorksFor(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	group := "group-" + b.topic
	for range 5 {
		must(t, b.client.ProduceSync(within(t), &kgo.Record{Topic: b.topic, Value: []byte("x")}).FirstErr())
	}
	commit := func(offset int64) {
		offsets := make(kadm.Offsets)
		offsets.AddOffset(b.topic, 0, offset, -1)
		must(t, b.admin.CommitAllOffsets(within(t), group, offsets))
	}
	look := func() []doctor.Finding {
		return (&doctor.Kafka{Client: b.client, Briefing: doctor.Briefing{Topics: []string{b.topic}}}).Check(within(t))
	}
	commit(2)
	prescribes(t, look(), doctor.Warn, "groups", group, "3 records wait, and it has no members", "--delete --group "+group)
	commit(5)
	for _, f := range look() {
		if f.Check == "groups" && f.Level != doctor.OK {
			t.Errorf("a group that is not behind: %v", f)
		}
	}
}

// prescribes wants a finding that says all of words, why it matters and what to do.
func prescribes(t *testing.T, findings []doctor.Finding, level doctor.Level, check string, words ...string) {
	t.Helper()
	for _, f := range findings {
		text := strings.Join([]string{f.Found, f.Why, f.Do}, " | ")
		all := f.Level == level && f.Check == check && f.Why != "" && f.Do != ""
		for _, word := range words {
			all = all && strings.Contains(text, word)
		}
		if all {
			return
		}
	}
	t.Errorf("no %s about %s with %q in %v", level, check, words, findings)
}
