package jetstream_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/internal/delivery"
	"github.com/oncemill/oncemill/internal/testenv"
)

func TestHoldStopsFetchingUntilTheProbeSucceeds(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.publish(b.topic("a"), 20)
	said := b.said()
	var log testenv.Log
	s := b.subscriber("g")
	s.MaxInFlight = 5
	s.Logger = log.Logger()
	s.NakDelay = func(uint64) time.Duration { return 10 * time.Millisecond }
	messages := b.subscribe(s, b.topic("a"))

	first := receive(t, messages)
	var back atomic.Bool
	var probes atomic.Int32
	probed := make(chan struct{}, 100)
	probe := func(context.Context) error {
		probes.Add(1)
		probed <- struct{}{}
		if back.Load() {
			return nil
		}
		return errors.New("away")
	}
	info, _ := delivery.From(first.Context())
	info.Hold(probe)
	info.Hold(probe)
	for range 4 { // those that wait in the process are given back
		await(t, said, "-NAK")
	}
	first.Nack()
	for range 4 {
		<-probed
	}
	nothing(t, messages, 100*time.Millisecond)
	back.Store(true)

	for range 20 {
		receive(t, messages).Ack()
	}
	if n := log.Count("again after a pause"); n != 1 {
		t.Errorf("resuming was logged %d times", n)
	}
	if n := probes.Load(); n != 5 {
		t.Errorf("%d probes", n)
	}
	must(t, s.Close())
	if info := b.consumer(durable("g", b.topic("a"))); info.AckFloor.Stream != 20 {
		t.Errorf("floor %d", info.AckFloor.Stream)
	}
}

func TestASubscriptionOnHoldCanBeClosed(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.publish(b.topic("a"), 2)
	s := b.subscriber("g")
	messages := b.subscribe(s, b.topic("a"))
	msg := receive(t, messages)
	info, _ := delivery.From(msg.Context())
	probing := make(chan struct{}, 1)
	info.Hold(func(ctx context.Context) error {
		probing <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	<-probing
	msg.Ack()
	must(t, s.Close())
	nothing(t, messages, 0)
}

// What no handler has goes to the other members at once, without waiting for
// AckWait; what a handler has is waited for, and kept alive for that long.
func TestCloseDrains(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"Close", "context"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, nil)
			b.publish(b.topic("a"), 10)
			said := b.said()
			s := b.subscriber("g")
			s.AckWait = time.Second
			s.DrainTimeout = patience
			subscribed, cancel := context.WithCancel(context.Background())
			defer cancel()
			messages, err := s.Subscribe(subscribed, b.topic("a"))
			must(t, err)
			handled := receive(t, messages)
			until(t, "all are on their way", func() bool { return b.consumer(durable("g", b.topic("a"))).NumAckPending == 10 })

			closed := make(chan error, 1)
			if how == "Close" {
				go func() { closed <- s.Close() }()
			} else {
				cancel()
			}
			<-handled.Context().Done()
			for range 9 {
				if nak := await(t, said, "-NAK"); string(nak.Data) != "-NAK" {
					t.Errorf("given back with %q", nak.Data)
				}
			}
			other := b.subscribe(b.subscriber("g"), b.topic("a"))
			for range 9 {
				receive(t, other).Ack()
			}
			for range 4 { // more than an AckWait
				await(t, said, "+WPI")
			}
			select {
			case _, open := <-messages:
				t.Fatalf("the channel is open: %v, while a message is handled", open)
			case <-closed:
				t.Fatal("Close has returned while a message is handled")
			default:
			}
			handled.Ack()
			select {
			case _, open := <-messages:
				if open {
					t.Error("a message arrives after the end")
				}
			case <-time.After(patience):
				t.Fatal("the channel is not closed")
			}
			if how == "Close" {
				must(t, <-closed)
			}
			nothing(t, other, 0)
			until(t, "all are acknowledged", func() bool { return b.consumer(durable("g", b.topic("a"))).AckFloor.Stream == 10 })
			if n := b.consumer(durable("g", b.topic("a"))).Delivered.Consumer; n != 19 {
				t.Errorf("%d deliveries", n)
			}
		})
	}
}

func TestCloseGivesUpAfterDrainTimeout(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.publish(b.topic("a"), 1)
	var log testenv.Log
	s := b.subscriber("g")
	s.Logger = log.Logger()
	s.AckWait = 500 * time.Millisecond
	s.DrainTimeout = 50 * time.Millisecond
	messages := b.subscribe(s, b.topic("a"))
	stuck := receive(t, messages)
	must(t, s.Close())
	must(t, s.Close())
	if log.Count("not acknowledged within DrainTimeout") != 1 {
		t.Errorf("log: %s", log.String())
	}
	again := receive(t, b.subscribe(b.subscriber("g"), b.topic("a")))
	if attempt(t, again) != 2 {
		t.Errorf("attempt %d", attempt(t, again))
	}
	stuck.Ack() // too late, and without effect
	again.Ack()
}

func TestANackWhileClosingIsDeliveredAtOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.publish(b.topic("a"), 1)
	said := b.said()
	s := b.subscriber("g")
	s.NakDelay = func(uint64) time.Duration { return time.Hour }
	messages := b.subscribe(s, b.topic("a"))
	msg := receive(t, messages)
	go func() {
		<-msg.Context().Done() // the handler is interrupted
		msg.Nack()
	}()
	must(t, s.Close())
	if nak := await(t, said, "-NAK"); string(nak.Data) != "-NAK" {
		t.Errorf("nacked with %q", nak.Data)
	}
	receive(t, b.subscribe(b.subscriber("g"), b.topic("a"))).Ack()
}

// Watermill's router ends all message contexts when it is closed.
func TestAHandlerThatRunsWhenTheRouterIsClosedIsAcknowledged(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.publish(b.topic("a"), 1)
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: patience}, watermill.NopLogger{})
	must(t, err)
	running, interrupted := make(chan struct{}), make(chan struct{})
	router.AddConsumerHandler("h", b.topic("a"), b.subscriber("g"), func(msg *message.Message) error {
		close(running)
		<-msg.Context().Done()
		close(interrupted)
		time.Sleep(100 * time.Millisecond) // it has begun to commit
		return nil
	})
	ended := make(chan error)
	go func() { ended <- router.Run(context.Background()) }()
	<-running
	must(t, router.Close())
	<-interrupted
	must(t, <-ended)
	if info := b.consumer(durable("g", b.topic("a"))); info.NumAckPending != 0 || info.AckFloor.Stream != 1 {
		t.Errorf("%d unacknowledged, floor %d", info.NumAckPending, info.AckFloor.Stream)
	}
}

func TestNoGoroutineIsLeft(t *testing.T) { // alone, to count goroutines
	b := newBench(t, nil)
	b.publish(b.topic("a"), 200)
	b.consumers() // whatever the connection starts at first use
	known := goleak.IgnoreCurrent()
	for _, group := range []string{"g", ""} {
		s := b.subscriber(group)
		subscribed, cancel := context.WithCancel(context.Background())
		first, err := s.Subscribe(subscribed, b.topic("a"))
		must(t, err)
		b.subscribe(s, b.topic("a"))
		receive(t, first).Ack()
		receive(t, first).Nack()
		cancel()
		for msg := range first {
			msg.Ack()
		}
		must(t, s.Close())
		must(t, s.Close())
	}
	goleak.VerifyNone(t, known)
}

func TestUseAfterCloseIsAnError(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	s := b.subscriber("g")
	must(t, s.Close())
	if _, err := s.Subscribe(ctx(t), b.topic("a")); !errors.Is(err, jetstream.ErrClosed) {
		t.Errorf("Subscribe: %v", err)
	}
	p := &jetstream.Publisher{Conn: b.nc}
	must(t, p.Close())
	must(t, p.Close())
	if err := p.Publish(b.topic("a"), message.NewMessage("1", nil)); !errors.Is(err, jetstream.ErrClosed) {
		t.Errorf("Publish: %v", err)
	}
}

func TestAClosedConnectionEndsTheSubscription(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.publish(b.topic("a"), 3)
	var log testenv.Log
	s := b.subscriber("g")
	s.Conn = connect(t)
	s.Logger = log.Logger()
	messages := b.subscribe(s, b.topic("a"))
	msg := receive(t, messages)
	s.Conn.Close()
	msg.Ack()
	for range messages {
	}
	if log.Count("MaxReconnects") != 1 {
		t.Errorf("log: %s", log.String())
	}
}

func TestADeletedConsumerIsMadeAnew(t *testing.T) {
	t.Parallel()
	for _, group := range []string{"g", ""} {
		t.Run("group "+group, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, nil)
			var log testenv.Log
			s := b.subscriber(group)
			s.Logger = log.Logger()
			s.MaxInFlight = 4
			messages := b.subscribe(s, b.topic("a"))
			b.publish(b.topic("a"), 5)
			for range 3 {
				receive(t, messages).Ack()
			}
			held := receive(t, messages)
			name := b.consumers()[0]
			until(t, "three are acknowledged", func() bool { return b.consumer(name).AckFloor.Stream == 3 })
			must(t, b.js.DeleteConsumer(ctx(t), b.stream, name))
			until(t, "the consumer is back", func() bool { return len(b.consumers()) == 1 && b.consumers()[0] == name })

			seen := make(map[string]int)
			b.publish(b.topic("a"), 1)
			for len(seen) < 3 || seen["0"] == 0 {
				msg := receive(t, messages)
				seen[string(msg.Payload)]++
				msg.Ack()
			}
			held.Ack()
			// A consumer without a group goes on where the subscription was. What
			// the other members of a group have done is not known.
			if _, again := seen["1"]; group == "" && again {
				t.Errorf("delivered after the deletion: %v", seen)
			}
			if log.Count("the consumer is gone") != 1 {
				t.Errorf("log: %s", log.String())
			}
		})
	}
}

// A stream that is deleted and made again counts from 1 again. Its messages must
// not be taken for the earlier ones.
func TestARecreatedStreamDoesNotRepeatPositions(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	s := b.subscriber("g")
	s.MaxInFlight = 1 // no pull is out that would tell of the deletion
	messages := b.subscribe(s, b.topic("a"))
	b.publish(b.topic("a"), 2)
	old := receive(t, messages)
	must(t, b.js.DeleteStream(ctx(t), b.stream))
	b.createStream(nil)
	must(t, (&jetstream.Subscriber{Conn: b.nc, Group: "g", MaxInFlight: 1}).SubscribeInitialize(b.topic("a"))) // another member
	b.publish(b.topic("a"), 1)
	time.Sleep(1100 * time.Millisecond) // longer than the source is trusted
	old.Ack()

	fresh := receive(t, messages)
	was, _ := delivery.From(old.Context())
	is, _ := delivery.From(fresh.Context())
	if was.Position == is.Position {
		t.Errorf("both are %q", is.Position)
	}
	d, _ := jetstream.FromContext(fresh.Context())
	if d.StreamSequence != 1 {
		t.Errorf("sequence %d", d.StreamSequence)
	}
	fresh.Ack()
}

// The acknowledgement of a message whose stream was deleted would be taken for
// that of the new stream's message with its number, which would be lost.
func TestAnOrphanIsNotAcknowledged(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	s := b.subscriber("g")
	s.MaxInFlight = 4
	messages := b.subscribe(s, b.topic("a"))
	b.publish(b.topic("a"), 1)
	old := receive(t, messages)
	must(t, b.js.DeleteStream(ctx(t), b.stream))
	b.createStream(nil)
	b.publish(b.topic("a"), 1)
	fresh := receive(t, messages) // the subscription has noticed
	old.Ack()
	<-old.Context().Done()
	fresh.Nack()
	again := receive(t, messages)
	if attempt(t, again) < 2 {
		t.Errorf("attempt %d", attempt(t, again))
	}
	again.Ack()
}

func TestAWorkQueueWorks(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(cfg *natsjs.StreamConfig) { cfg.Retention = natsjs.WorkQueuePolicy })
	for _, group := range []string{"g", ""} {
		topic := b.topic("a" + group)
		messages := b.subscribe(b.subscriber(group), topic)
		b.publish(topic, 10)
		for range 10 {
			receive(t, messages).Ack()
		}
	}
	until(t, "the queue is empty", func() bool {
		stream, err := b.js.Stream(ctx(t), b.stream)
		must(t, err)
		return stream.CachedInfo().State.Msgs == 0
	})
}

// A connection that breaks loses the pulls, and perhaps messages under way.
func TestABrokenConnectionIsSurvived(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	s := b.subscriber("g")
	s.Conn = connect(t, nats.ReconnectWait(10*time.Millisecond))
	s.AckWait = time.Second
	messages := b.subscribe(s, b.topic("a"))
	const total = 300
	seen := make(map[string]bool)
	for round := range 5 {
		for i := range total / 5 {
			b.store(&nats.Msg{Subject: b.topic("a"), Data: fmt.Append(nil, round*total/5+i)})
		}
		must(t, s.Conn.ForceReconnect())
		for len(seen) < (round+1)*total/5 {
			msg := receive(t, messages)
			seen[string(msg.Payload)] = true
			msg.Ack()
		}
	}
	until(t, "all are acknowledged", func() bool { return b.consumer(durable("g", b.topic("a"))).AckFloor.Stream == total })
}
