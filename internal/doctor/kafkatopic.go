package doctor

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/oncemill/oncemill/internal/durable"
)

func (k *Kafka) lookAtTopics(ctx context.Context, topics []kmsg.MetadataResponseTopic, brokers int) {
	configs, err := k.configs(ctx, topics)
	if err != nil {
		k.skip("topic", "the topics' configuration cannot be read: "+err.Error(), "let the user describe configurations (DESCRIBE_CONFIGS)")
	}
	for _, t := range topics {
		before := len(k.all)
		config := configs[*t.Topic]
		k.lookAtReplicas(t, config, brokers)
		if config != nil {
			k.lookAtConfig(*t.Topic, config)
		}
		if len(k.all) == before && config != nil {
			k.ok("topic", "%q: %s, %s with min.insync.replicas %s, records kept for %s, up to %s each", *t.Topic, counted(int64(len(t.Partitions)), 0, "partition", "partitions"),
				counted(int64(fewest(t)), 0, "replica", "replicas"), config["min.insync.replicas"], durable.Lasting(milliseconds64(config, "retention.ms")), size(number(config, "max.message.bytes")))
		}
	}
}

// number is a number of the configuration, -1 if there is none.
func number(config map[string]string, name string) int64 {
	n, err := strconv.ParseInt(config[name], 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// milliseconds64 is a time of the configuration, 0 or less for ever.
func milliseconds64(config map[string]string, name string) time.Duration {
	n := number(config, name)
	if n > math.MaxInt64/int64(time.Millisecond) {
		return 0
	}
	return time.Duration(n) * time.Millisecond
}

// fewest is the least number of replicas that a partition has.
func fewest(t kmsg.MetadataResponseTopic) int {
	n := 0
	for i, p := range t.Partitions {
		if i == 0 || len(p.Replicas) < n {
			n = len(p.Replicas)
		}
	}
	return n
}

func (k *Kafka) lookAtReplicas(t kmsg.MetadataResponseTopic, config map[string]string, brokers int) {
	topic, replicas, least := *t.Topic, fewest(t), int(number(config, "min.insync.replicas"))
	if replicas < least {
		k.fail("replicas", fmt.Sprintf("topic %q has %s, and min.insync.replicas is %d", topic, counted(int64(replicas), 0, "replica", "replicas"), least), "brokers refuse every record that is to be acknowledged by all: messages to it wait in the outbox",
			durable.Alter(topic, "min.insync.replicas="+strconv.Itoa(replicas))+", or give it more replicas")
	}
	k.tell(durable.Topic{Name: topic, Replicas: replicas, Brokers: brokers, Least: least, Unclean: config["unclean.leader.election.enable"] == "true"}.Copies())
	leaderless, behind := 0, 0
	for _, p := range t.Partitions {
		switch {
		case p.Leader < 0:
			leaderless++
		case len(p.ISR) < least || len(p.ISR) < len(p.Replicas):
			behind++
		}
	}
	if leaderless > 0 {
		k.fail("replicas", fmt.Sprintf("topic %q: %s no leader", topic, counted(int64(leaderless), 0, "partition has", "partitions have")), "nothing can be written to or read from them", "start the brokers that hold them")
	}
	if behind > 0 {
		k.warn("replicas", fmt.Sprintf("topic %q: %s replicas that are behind or away", topic, counted(int64(behind), 0, "partition has", "partitions have")), "fewer disks hold what is acknowledged, and below min.insync.replicas nothing is taken", "kafka-topics.sh --describe --under-replicated-partitions, and start what is missing")
	}
}

func (k *Kafka) lookAtConfig(topic string, config map[string]string) {
	compacted := strings.Contains(config["cleanup.policy"], "compact")
	if compacted {
		k.warn("compaction", fmt.Sprintf("topic %q is compacted", topic), "it refuses records without a key, which are then parked in the outbox, and of each key it keeps the last record only: those before it are not delivered to whoever comes late", "give every message to it the metadata oncemill-ordering-key; or "+durable.Alter(topic, "cleanup.policy=delete"))
	}
	if deletes := strings.Contains(config["cleanup.policy"], "delete"); deletes || compacted {
		kept := milliseconds64(config, "retention.ms")
		if !deletes {
			kept = 0
		}
		k.tell(durable.Topic{Name: topic, Kept: kept, KeptKnown: true}.Horizon(k.Briefing.claims()))
	}
	if most := number(config, "max.message.bytes"); most > 0 && most < 64<<10 {
		k.warn("limits", fmt.Sprintf("topic %q takes batches of %s at most", topic, size(most)), "a message that is larger is parked in the outbox; a dead letter is up to 2 KiB larger than its message", durable.Alter(topic, "max.message.bytes=1048588"))
	}
}
