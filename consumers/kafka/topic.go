package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/oncemill/oncemill/internal/delivery"
)

// A TopicConfig says how to create a topic.
type TopicConfig struct {
	// Partitions is how many partitions it gets. 0 means the brokers' default.
	Partitions int32

	// Replicas is how many brokers hold each partition. 0 means the brokers'
	// default.
	Replicas int16

	// Configs are further settings, such as "retention.ms".
	Configs map[string]string
}

var errNoTopic = errors.New("no topic: give the name of a Kafka topic")

// checkTopic tells what is wrong with a topic's name.
func checkTopic(topic string) error {
	const longest = 249 // bytes
	switch {
	case topic == "":
		return errNoTopic
	case topic == "." || topic == "..":
		return fmt.Errorf("topic %q is no Kafka topic: it is a name for folders", topic)
	case len(topic) > longest:
		return fmt.Errorf("topic %q... is no Kafka topic: its %d bytes are more than %d", topic[:64], len(topic), longest)
	}
	for i := range len(topic) {
		c := topic[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && strings.IndexByte("._-", c) < 0 {
			return fmt.Errorf("topic %q is no Kafka topic: use letters, digits, '.', '_' and '-'", topic)
		}
	}
	return nil
}

func checkGroup(group string) error {
	if !utf8.ValidString(group) || strings.IndexByte(group, 0) >= 0 {
		return fmt.Errorf("Subscriber.Group %q is no consumer group: it contains NUL or is not UTF-8", group)
	}
	return nil
}

// ensureTopic finds a topic, or creates it if create is not nil.
func ensureTopic(ctx context.Context, client *kgo.Client, topic string, create func(topic string) TopicConfig) error {
	err := findTopic(ctx, client, topic)
	switch {
	case !errors.Is(err, kerr.UnknownTopicOrPartition):
		return err
	case create == nil:
		return fmt.Errorf("%w; or set Subscriber.CreateTopic", err)
	}
	if err := createTopic(ctx, client, topic, create(topic)); err != nil {
		return fmt.Errorf("create the topic: %w", err)
	}
	// The brokers hear of it one after another.
	for {
		err := findTopic(ctx, client, topic)
		if !errors.Is(err, kerr.UnknownTopicOrPartition) && !retriable(err) {
			return err
		}
		if !delivery.Sleep(ctx, 20*time.Millisecond) {
			return err
		}
	}
}

// findTopic returns nil if a topic is there and may be used.
func findTopic(ctx context.Context, client *kgo.Client, topic string) error {
	found, err := lookUp(ctx, client, []string{topic})
	if err != nil {
		return err
	}
	return found[topic].err
}

// A topicState is what the brokers say of a topic.
type topicState struct {
	err      error // what is wrong with it, nil if it is there
	replicas int   // of the partition that has the fewest
	brokers  int   // that there are
}

// lookUp asks the brokers for topics.
func lookUp(ctx context.Context, client *kgo.Client, topics []string) (map[string]topicState, error) {
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = []kmsg.MetadataRequestTopic{} // nil would be all
	for _, topic := range topics {
		one := kmsg.NewMetadataRequestTopic()
		one.Topic = kmsg.StringPtr(topic)
		req.Topics = append(req.Topics, one)
	}
	resp, err := ask(ctx, func(ctx context.Context) (*kmsg.MetadataResponse, error) { return req.RequestWith(ctx, client) })
	if err != nil {
		return nil, unreachable(client, err)
	}
	found := make(map[string]topicState, len(topics))
	for _, t := range resp.Topics {
		if t.Topic == nil {
			continue
		}
		err := kerr.ErrorForCode(t.ErrorCode)
		state := topicState{brokers: len(resp.Brokers)}
		for i, p := range t.Partitions {
			if i == 0 || len(p.Replicas) < state.replicas {
				state.replicas = len(p.Replicas)
			}
			// It has just been made, and no broker leads it yet.
			if p.Leader < 0 && err == nil {
				err = kerr.LeaderNotAvailable
			}
		}
		state.err = topicError(*t.Topic, err)
		found[*t.Topic] = state
	}
	for _, topic := range topics {
		if _, ok := found[topic]; !ok {
			found[topic] = topicState{err: topicError(topic, kerr.UnknownTopicOrPartition)}
		}
	}
	return found, nil
}

// topicError says what is wrong with a topic, and what to do.
func topicError(topic string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, kerr.UnknownTopicOrPartition):
		return fmt.Errorf("topic %q does not exist: create it, for example with `kafka-topics.sh --bootstrap-server HOST:PORT --create --topic %s` (%w)", topic, topic, err)
	case errors.Is(err, kerr.TopicAuthorizationFailed):
		return fmt.Errorf("topic %q: %w: this user may not use it, or it does not exist; give the user the rights with kafka-acls.sh", topic, err)
	}
	return fmt.Errorf("topic %q: %w", topic, err)
}

func createTopic(ctx context.Context, client *kgo.Client, topic string, cfg TopicConfig) error {
	req := kmsg.NewPtrCreateTopicsRequest()
	req.TimeoutMillis = int32(setupTimeout.Milliseconds())
	one := kmsg.NewCreateTopicsRequestTopic()
	one.Topic, one.NumPartitions, one.ReplicationFactor = topic, cfg.Partitions, cfg.Replicas
	if one.NumPartitions == 0 {
		one.NumPartitions = -1
	}
	if one.ReplicationFactor == 0 {
		one.ReplicationFactor = -1
	}
	for name, value := range cfg.Configs {
		c := kmsg.NewCreateTopicsRequestTopicConfig()
		c.Name, c.Value = name, kmsg.StringPtr(value)
		one.Configs = append(one.Configs, c)
	}
	req.Topics = append(req.Topics, one)
	resp, err := attempt(ctx, setupTimeout, func(ctx context.Context) (*kmsg.CreateTopicsResponse, error) { return req.RequestWith(ctx, client) })
	if err != nil {
		return unreachable(client, err)
	}
	for _, t := range resp.Topics {
		err := kerr.ErrorForCode(t.ErrorCode)
		if err == nil || errors.Is(err, kerr.TopicAlreadyExists) { // another process was faster
			continue
		}
		if t.ErrorMessage != nil {
			return fmt.Errorf("%w: %s", err, *t.ErrorMessage)
		}
		return err
	}
	return nil
}

// checkAccess returns nil if the group can be used by this user. The brokers may
// have to set up first what they keep groups in.
func checkAccess(ctx context.Context, client *kgo.Client, group string) error {
	if group == "" {
		return nil
	}
	for {
		err := lookIntoGroup(ctx, client, group)
		if err == nil {
			return nil
		}
		if !retriable(err) || !delivery.Sleep(ctx, 50*time.Millisecond) {
			return fmt.Errorf("consumer group %q: %w", group, err)
		}
	}
}

// retriable looks for one of the brokers' errors that is over soon.
func retriable(err error) bool {
	var broker *kerr.Error
	return errors.As(err, &broker) && broker.Retriable
}

func lookIntoGroup(ctx context.Context, client *kgo.Client, group string) error {
	req := kmsg.NewPtrOffsetFetchRequest()
	req.Group = group
	one := kmsg.NewOffsetFetchRequestGroup()
	one.Group = group
	req.Groups = append(req.Groups, one)
	resp, err := ask(ctx, func(ctx context.Context) (*kmsg.OffsetFetchResponse, error) { return req.RequestWith(ctx, client) })
	if err != nil {
		return unreachable(client, err)
	}
	for _, code := range append([]int16{resp.ErrorCode}, codes(resp.Groups)...) {
		if err := kerr.ErrorForCode(code); err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
			return explained(err)
		}
	}
	return nil
}

func codes(groups []kmsg.OffsetFetchResponseGroup) (codes []int16) {
	for _, g := range groups {
		codes = append(codes, g.ErrorCode)
	}
	return codes
}
