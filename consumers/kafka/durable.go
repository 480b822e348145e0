package kafka

import (
	"context"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/oncemill/oncemill/internal/delivery"
	"github.com/oncemill/oncemill/internal/durable"
)

// Settings of a topic with which messages can be lost.
const (
	leastInSync    = "min.insync.replicas"
	uncleanLeaders = "unclean.leader.election.enable"
)

// configsOf asks for settings of topics. It is no error if they cannot be had, as where this
// user may not ask: then they are not there.
func configsOf(ctx context.Context, client *kgo.Client, topics []string, names ...string) map[string]map[string]string {
	if len(topics) == 0 {
		return nil
	}
	req := kmsg.NewPtrDescribeConfigsRequest()
	for _, topic := range topics {
		one := kmsg.NewDescribeConfigsRequestResource()
		one.ResourceType, one.ResourceName, one.ConfigNames = kmsg.ConfigResourceTypeTopic, topic, names
		req.Resources = append(req.Resources, one)
	}
	resp, err := ask(ctx, func(ctx context.Context) (*kmsg.DescribeConfigsResponse, error) { return req.RequestWith(ctx, client) })
	if err != nil {
		return nil
	}
	all := make(map[string]map[string]string, len(topics))
	for _, r := range resp.Resources {
		config := make(map[string]string, len(r.Configs))
		for _, c := range r.Configs {
			if c.Value != nil {
				config[c.Name] = *c.Value
			}
		}
		all[r.ResourceName] = config
	}
	return all
}

// copiesIn is what a topic's settings say of its copies.
func copiesIn(config map[string]string) durable.Topic {
	least, _ := strconv.Atoi(config[leastInSync]) // 0 if it is not known
	return durable.Topic{Least: least, Unclean: config[uncleanLeaders] == "true"}
}

// warn says what can be lost with topics.
func (p *producer) warn(ctx context.Context, found map[string]topicState) {
	if p.log == nil {
		return
	}
	for name, state := range found {
		if state.err != nil {
			continue
		}
		p.limitsMu.Lock()
		topic := p.limits[name].copies
		p.limitsMu.Unlock()
		topic.Name, topic.Replicas, topic.Brokers = name, state.replicas, state.brokers
		durable.Tell(ctx, p.log, topic.Copies())
	}
}

// warn says what can be lost with the topic, or happen again. It is nothing to fail for.
func (s *subscription) warn(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	found, err := lookUp(ctx, s.base, []string{s.topic})
	if state := found[s.topic]; err == nil && state.err == nil {
		config := configsOf(ctx, s.base, []string{s.topic}, "cleanup.policy", "retention.ms", leastInSync, uncleanLeaders)[s.topic]
		topic := copiesIn(config)
		topic.Name, topic.Replicas, topic.Brokers = s.topic, state.replicas, state.brokers
		topic.Kept, topic.KeptKnown = keptIn(config)
		durable.Tell(ctx, s.log, append(topic.Copies(), topic.Horizon(durable.Claims{Kept: delivery.Kept(ctx)})...))
	}
}

// keptIn is for how long a topic keeps records, 0 for ever.
func keptIn(config map[string]string) (kept time.Duration, known bool) {
	policy, ms := config["cleanup.policy"], config["retention.ms"]
	n, err := strconv.ParseInt(ms, 10, 64)
	switch {
	case policy == "" || err != nil:
		return 0, false
	case !strings.Contains(policy, "delete"), n < 0, n > math.MaxInt64/int64(time.Millisecond):
		return 0, true
	}
	return time.Duration(n) * time.Millisecond, true
}
