package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Kafka is the broker to be looked at.
type Kafka struct {
	Client   *kgo.Client
	Brokers  string   // for people
	Briefing Briefing // what the database says

	findings
}

// kafkaWithin bounds each question.
const kafkaWithin = 10 * time.Second

// Check looks at everything that can be reached.
func (k *Kafka) Check(ctx context.Context) []Finding {
	k.part = PartKafka
	wanted := k.Briefing.topics()
	begun := time.Now()
	metadata, err := k.metadata(ctx, wanted)
	if err != nil {
		k.fail("connection", k.Brokers+" cannot be reached: "+err.Error(), "what the outbox holds waits until Kafka is back; what else is in Kafka was not looked at",
			"check --kafka-brokers, TLS, the login, and that the addresses that the brokers advertise can be reached from here")
		return k.all
	}
	k.ok("connection", "%s answers in %v", k.Brokers, time.Since(begun).Round(time.Millisecond))
	k.ok("brokers", "%s", counted(int64(len(metadata.Brokers)), 0, "broker", "brokers"))
	if topics := k.chosen(metadata, len(wanted) > 0); len(topics) > 0 {
		k.lookAtTopics(ctx, topics, len(metadata.Brokers))
		k.lookAtGroups(ctx, topics)
	}
	return k.all
}

// metadata asks for the topics, or if there are none for all. No topic is made by that.
func (k *Kafka) metadata(ctx context.Context, topics []string) (*kmsg.MetadataResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, kafkaWithin)
	defer cancel()
	request := kmsg.NewPtrMetadataRequest()
	for _, topic := range topics {
		one := kmsg.NewMetadataRequestTopic()
		one.Topic = kmsg.StringPtr(topic)
		request.Topics = append(request.Topics, one)
	}
	return request.RequestWith(ctx, k.Client)
}

// mostKafkaTopics is how many topics are looked at where none was named.
const mostKafkaTopics = 20

// chosen returns the topics to be looked at.
func (k *Kafka) chosen(metadata *kmsg.MetadataResponse, named bool) (topics []kmsg.MetadataResponseTopic) {
	for _, t := range metadata.Topics {
		if t.Topic == nil || !named && (t.IsInternal || strings.HasPrefix(*t.Topic, "__")) {
			continue
		}
		switch err := kerr.ErrorForCode(t.ErrorCode); {
		case errors.Is(err, kerr.UnknownTopicOrPartition):
			k.fail("topic", fmt.Sprintf("there is no topic %q", *t.Topic), "messages to it wait in the outbox, unless brokers make topics by themselves",
				"kafka-topics.sh --create --topic "+*t.Topic+" --partitions 6 --replication-factor 3")
		case err != nil:
			k.skip("topic", fmt.Sprintf("topic %q cannot be looked at: %v", *t.Topic, err), "let the user describe topics and their configuration")
		default:
			topics = append(topics, t)
		}
	}
	if !named && len(topics) > mostKafkaTopics {
		k.skip("topic", fmt.Sprintf("there are %d topics, and the outbox names none", len(topics)), "name those to look at: --topic")
		return nil
	}
	if !named && len(topics) == 0 {
		k.warn("topic", "there is no topic", "nothing can be published", "kafka-topics.sh --create --topic NAME --partitions 6 --replication-factor 3")
	}
	return topics
}

// configs asks for the topics' configuration.
func (k *Kafka) configs(ctx context.Context, topics []kmsg.MetadataResponseTopic) (map[string]map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, kafkaWithin)
	defer cancel()
	request := kmsg.NewPtrDescribeConfigsRequest()
	for _, t := range topics {
		one := kmsg.NewDescribeConfigsRequestResource()
		one.ResourceType, one.ResourceName = kmsg.ConfigResourceTypeTopic, *t.Topic
		one.ConfigNames = []string{"min.insync.replicas", "retention.ms", "retention.bytes", "cleanup.policy", "max.message.bytes", "unclean.leader.election.enable"}
		request.Resources = append(request.Resources, one)
	}
	response, err := request.RequestWith(ctx, k.Client)
	if err != nil {
		return nil, err
	}
	all := make(map[string]map[string]string)
	for _, r := range response.Resources {
		if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
			k.skip("topic", fmt.Sprintf("the configuration of topic %q cannot be read: %v", r.ResourceName, err), "let the user describe configurations (DESCRIBE_CONFIGS)")
			continue
		}
		values := make(map[string]string)
		for _, c := range r.Configs {
			if c.Value != nil {
				values[c.Name] = *c.Value
			}
		}
		all[r.ResourceName] = values
	}
	return all, nil
}
