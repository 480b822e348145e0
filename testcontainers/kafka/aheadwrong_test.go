package kafka_test

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
)

// running counts the messages that a router's handlers have at a time.
type running struct{ now, most, handled atomic.Int64 }

func (r *running) handle(*message.Message) error {
	n := r.now.Add(1)
	defer r.now.Add(-1)
	if n > r.most.Load() {
		r.most.Store(n)
	}
	time.Sleep(time.Millisecond)
	if r.handled.Add(1)%10 == 0 {
		return errors.New("the test wants it to fail")
	}
	return nil
}

// A router that does not keep the order gets one message at a time, and the log
// says what is missing.
func TestWithoutOnceNothingIsHandedOutAhead(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	b.publish(0, 100)
	var log logbook
	s := b.subscriber("g")
	s.Ahead, s.Logger = 16, log.Logger()
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NewSlogLogger(slog.New(slog.DiscardHandler)))
	must(t, err)
	var r running
	router.AddConsumerHandler("h", b.topic, s, r.handle)
	ended := make(chan error)
	go func() { ended <- router.Run(context.Background()) }()
	b.awaitCommitted("g", 100)
	must(t, router.Close())
	must(t, <-ended)
	if n := r.most.Load(); n != 1 {
		t.Errorf("%d messages at a time", n)
	}
	for _, words := range []string{"Subscriber.Ahead", "consumers.Stack", "Once.Inbox", "Batch above 1"} {
		if log.Count(words) != 1 {
			t.Errorf("%q is logged %d times, want once:\n%s", words, log.Count(words), log.String())
		}
	}
}

// One message that is acknowledged by somebody who does not keep the order is
// enough, also later.
func TestAnAckOutOfTurnEndsHandingOutAhead(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	b.publish(0, 30)
	var log logbook
	s := b.subscriber("g")
	s.Ahead, s.Logger = 4, log.Logger()
	messages, out := b.ahead(s, 3)
	receive(t, messages).Nack()         // which tells nothing
	b.keep(receive(t, messages)).Nack() // nor does what was kept the last time
	out = append(out, receive(t, messages))
	nothing(t, messages, 20*time.Millisecond)
	if log.has("Ahead") {
		t.Error(log.String())
	}
	out[3].Ack()
	log.await(t, "Subscriber.Ahead")
	for _, msg := range out[:3] {
		nothing(t, messages, 20*time.Millisecond)
		msg.Ack()
	}
	for i := 4; i < 30; i++ {
		msg := b.keep(receive(t, messages))
		if number(t, msg) != i {
			t.Fatalf("got %s, want %d", msg.Payload, i)
		}
		if i < 8 {
			nothing(t, messages, 20*time.Millisecond)
		}
		msg.Ack()
	}
	b.awaitCommitted("g", 30)
}
