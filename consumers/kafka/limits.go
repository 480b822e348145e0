package kafka

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/internal/durable"
	"github.com/oncemill/oncemill/outbox"
)

// limits are what a topic takes. The zero value is that nothing is known of it.
//
// The brokers tell them by refusing a batch of records as a whole, and the client
// then fails all that it has for the partition. So a producer asks beforehand, and
// makes no batch that would be refused. Where it may not ask, or the answer is out
// of date, sendAlone finds out which record it was.
type limits struct {
	batchBytes int32 // max.message.bytes
	compact    bool  // cleanup.policy
	copies     durable.Topic
}

var errKeyless = fmt.Errorf("%w: a topic with cleanup.policy=compact takes only records with a key; set the metadata %q", outbox.ErrRefused, outbox.OrderingKeyMetadata)

const (
	// usualBatch is kgo's own limit of a batch, where the user has set none. It is
	// a little less than what topics take unless told otherwise.
	usualBatch = 1_000_012

	// largestBatch is what is sent where nothing else is known, for the brokers to
	// judge. They end the connection at 100 MiB, unless told otherwise.
	largestBatch = 64 << 20
)

// batchLimit returns what tells the client how large a batch may be. It is asked
// once for each topic.
func (p *producer) batchLimit(base *kgo.Client) func(topic string) int32 {
	own := userLimit(base)
	return func(topic string) int32 {
		const least = 512 // for the client
		p.limitsMu.Lock()
		defer p.limitsMu.Unlock()
		known := p.limits[topic].batchBytes
		switch {
		case known == 0:
			return own(topic)
		case own(topic) == usualBatch:
			return max(min(known, largestBatch), least)
		}
		return max(min(known, own(topic)), least)
	}
}

// singleLimit is the same for records that are alone.
func singleLimit(base *kgo.Client) func(topic string) int32 {
	own := userLimit(base)
	return func(topic string) int32 {
		if n := own(topic); n != usualBatch {
			return n
		}
		return largestBatch
	}
}

func userLimit(base *kgo.Client) func(topic string) int32 {
	own, _ := base.OptValue(kgo.ProducerBatchMaxBytesFn).(func(string) int32)
	return own
}

// ownLimit says so if it is the user's limit that a record is beyond.
func ownLimit(client *kgo.Client, r *kgo.Record) string {
	if n := userLimit(client)(r.Topic); int(n) < size(r) {
		return fmt.Sprintf(", or than kgo.ProducerBatchMaxBytes, which is %d here", n)
	}
	return ""
}

// excludeKeyless sorts out the records that a compacted topic would refuse. Their
// records become nil.
func (p *producer) excludeKeyless(records []*kgo.Record, errs []error) {
	p.limitsMu.Lock()
	defer p.limitsMu.Unlock()
	for i, r := range records {
		if r != nil && r.Key == nil && p.limits[r.Topic].compact {
			records[i], errs[i] = nil, errKeyless
		}
	}
}

// learnLimits asks for the limits of topics that are there, unless they are known.
// It is no error if that cannot be had: this user may not be allowed to ask.
func (p *producer) learnLimits(ctx context.Context, client *kgo.Client, found map[string]topicState) {
	var unknown []string
	p.limitsMu.Lock()
	for topic, state := range found {
		if _, known := p.limits[topic]; !known && state.err == nil {
			unknown = append(unknown, topic)
		}
	}
	p.limitsMu.Unlock()
	configs := configsOf(ctx, client, unknown, "max.message.bytes", "cleanup.policy", leastInSync, uncleanLeaders)
	p.limitsMu.Lock()
	defer p.limitsMu.Unlock()
	if p.limits == nil {
		p.limits = make(map[string]limits)
	}
	for topic, config := range configs {
		p.limits[topic] = limitsIn(config)
	}
}

// forgetLimits has topics asked again.
func (p *producer) forgetLimits(topics map[string]bool) {
	p.limitsMu.Lock()
	defer p.limitsMu.Unlock()
	for topic := range topics {
		delete(p.limits, topic)
	}
}

func limitsIn(config map[string]string) (l limits) {
	if n, err := strconv.ParseInt(config["max.message.bytes"], 10, 32); err == nil {
		l.batchBytes = int32(n)
	}
	l.compact = strings.Contains(config["cleanup.policy"], "compact")
	l.copies = copiesIn(config)
	return l
}
