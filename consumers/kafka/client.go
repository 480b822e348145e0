package kafka

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// checkClient tells what is wrong with a client that others are made from.
func checkClient(owner string, client *kgo.Client) error {
	if client == nil {
		return fmt.Errorf("%s.Client is nil: set it to a *kgo.Client, as in kgo.NewClient(kgo.SeedBrokers(\"127.0.0.1:9092\"))", owner)
	}
	if reflect.ValueOf(client.OptValue(kgo.ConsumeTopics)).Len()+reflect.ValueOf(client.OptValue(kgo.ConsumePartitions)).Len() > 0 {
		return fmt.Errorf("%s.Client consumes topics: make it without kgo.ConsumeTopics and kgo.ConsumePartitions", owner)
	}
	if group, _ := client.OptValue(kgo.ConsumerGroup).(string); group != "" {
		return fmt.Errorf("%s.Client consumes as group %q: make it without kgo.ConsumerGroup", owner, group)
	}
	return refuse(owner, client, []refusal{
		{"ConsumeRegex", "a topic is one topic", kgo.ConsumeRegex},
		{"KeepControlRecords", "they are no messages", kgo.KeepControlRecords},
		{"ServerSideBalancer", "commits are only fenced in the classic protocol of groups", kgo.ServerSideBalancer},
	})
}

// checkProducer tells what is wrong with a client that producers are made from.
func checkProducer(owner string, client *kgo.Client) error {
	if err := checkClient(owner, client); err != nil {
		return err
	}
	if id, _ := client.OptValue(kgo.TransactionalID).(string); id != "" {
		return fmt.Errorf("%s.Client has kgo.TransactionalID %q: make it without, the outbox does what a transaction would be for", owner, id)
	}
	return refuse(owner, client, []refusal{
		{"DisableIdempotentWrite", "records could be stored twice and out of order", kgo.DisableIdempotentWrite},
		{"ManualFlushing", "nobody would flush", kgo.ManualFlushing},
		{"DefaultProduceTopicAlways", "messages would go to another topic than theirs", kgo.DefaultProduceTopicAlways},
	})
}

// A refusal is an option that a client may not have, and why.
type refusal struct {
	name, why string
	option    any
}

func refuse(owner string, client *kgo.Client, refusals []refusal) error {
	for _, r := range refusals {
		if set, _ := client.OptValue(r.option).(bool); set {
			return fmt.Errorf("%s.Client has kgo.%s: make it without, %s", owner, r.name, r.why)
		}
	}
	return nil
}

// newClient makes a client from another one's options.
func newClient(opts []kgo.Opt) (client *kgo.Client, err error) {
	defer func() {
		// Hooks of the user's are told of the new client. One that registers
		// metrics, such as kprom's, cannot do that twice.
		if panicked := recover(); panicked != nil {
			err = fmt.Errorf("a hook in kgo.WithHooks does not serve a second client, make it without: %v", panicked)
		}
	}()
	return kgo.NewClient(opts...)
}

const (
	// dialTimeout is short enough for another broker to be tried in the time that
	// a call has. kgo's own is 10 seconds.
	dialTimeout = 3 * time.Second

	// attemptTimeout is for how long one broker is waited for that was asked
	// something that any of them could answer.
	attemptTimeout = 3 * time.Second
)

// ask has a client ask the brokers, and another one of them if the first is
// silent, until ctx ends. The client itself does not look at ctx while it sets up a
// connection, for 10 seconds.
func ask[Answer any](ctx context.Context, request func(context.Context) (Answer, error)) (Answer, error) {
	for {
		answer, err := attempt(ctx, attemptTimeout, request)
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return answer, err
		}
	}
}

func attempt[Answer any](ctx context.Context, limit time.Duration, request func(context.Context) (Answer, error)) (answer Answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	done := make(chan struct{})
	var late Answer
	var failure error
	go func() {
		defer cancel()
		late, failure = request(ctx)
		close(done)
	}()
	select {
	case <-done:
		return late, failure
	case <-ctx.Done():
		select { // the request ends ctx as well
		case <-done:
			return late, failure
		default:
			return answer, ctx.Err()
		}
	}
}
