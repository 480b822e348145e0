package kafka_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/oncemill/oncemill/consumers/kafka"
	"github.com/oncemill/oncemill/internal/delivery"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

// What a topic that is not replicated can lose, its readers and writers are told when they
// come to it, in the doctor's words, and once.
func TestATopicThatCanLoseWhatItAcknowledgedIsWarnedOf(t *testing.T) {
	t.Parallel()
	for who, comes := range map[string]func(*bench, *testenv.Log){
		"subscriber": func(b *bench, log *testenv.Log) {
			for _, group := range []string{"one", "two"} {
				sub := b.subscriber(group + "-" + b.topic)
				sub.Logger = log.Logger()
				b.subscribe(sub)
			}
		},
		"sink": func(b *bench, log *testenv.Log) {
			sink := &kafka.Sink{Client: b.client, Logger: log.Logger()}
			b.t.Cleanup(func() { must(b.t, sink.Close()) })
			must(b.t, sink.Check(within(b.t)))
			for id := range int64(2) {
				for _, err := range sink.PublishBatch(within(b.t), []outbox.Row{{ID: id, Topic: b.topic, DedupID: fmt.Sprint(id)}}) {
					must(b.t, err)
				}
			}
		},
	} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, 1)
			var log testenv.Log
			comes(b, &log)
			for _, words := range []string{`msg="oncemill: topic \"` + b.topic + `\" has one replica" check=replicas`, "after a power failure", "level=WARN"} {
				if log.Count(words) != 1 {
					t.Errorf("want one %q in\n%s", words, log.String())
				}
			}
		})
	}
}

// A Stack tells subscribers for how long claims are kept.
func TestRetentionShorterThanTheTopicIsWarnedOfAtStart(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		retention string
		says      string
	}{
		"for ever": {"-1", "keeps records for ever, claims are kept for 2 days"},
		"longer":   {"259200000", "keeps records for 3 days, claims are kept for 2 days"},
		"as long":  {"172800000", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, 1)
			_, err := b.admin.AlterTopicConfigs(within(t), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.ms", Value: &test.retention}}, b.topic)
			must(t, err)
			until(t, "the setting is there", func() bool {
				found, err := b.admin.DescribeTopicConfigs(within(t), b.topic)
				must(t, err)
				for _, c := range found[0].Configs {
					if c.Key == "retention.ms" && c.MaybeValue() == test.retention {
						return true
					}
				}
				return false
			})
			var log testenv.Log
			sub := b.subscriber("group-" + b.topic)
			sub.Logger = log.Logger()
			_, err = sub.Subscribe(delivery.WithKept(t.Context(), 48*time.Hour), b.topic)
			must(t, err)
			if n := log.Count("check=retention"); test.says == "" && n != 0 || test.says != "" && (n != 1 || log.Count(test.says) != 1 || log.Count("retention.ms=172800000; or raise Inbox.Retention") != 1) {
				t.Errorf("want %q in\n%s", test.says, log.String())
			}
		})
	}
}
