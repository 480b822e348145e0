package jetstream_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers"
)

// A site is a server of one's own with a stream of the subject "a".
type site struct {
	t      *testing.T
	server *testcontainers.NATSServer
	nc     *nats.Conn
	js     natsjs.JetStream
}

func newSite(t *testing.T) *site {
	t.Helper()
	server := startNATS(t)
	nc := connect(t, server.URL())
	js, err := natsjs.New(nc)
	must(t, err)
	_, err = js.CreateStream(within(t), natsjs.StreamConfig{Name: "A", Subjects: []string{"a"}})
	must(t, err)
	return &site{t: t, server: server, nc: nc, js: js}
}

func (s *site) subscriber(group string) *jetstream.Subscriber {
	sub := &jetstream.Subscriber{Conn: connect(s.t, s.server.URL()), Group: group, DrainTimeout: time.Second, Logger: slog.New(slog.DiscardHandler)}
	s.t.Cleanup(func() { sub.Close() })
	return sub
}

func (s *site) subscribe(sub *jetstream.Subscriber) <-chan *message.Message {
	s.t.Helper()
	messages, err := sub.Subscribe(context.Background(), "a")
	must(s.t, err)
	return messages
}

// publish stores the payloads from up to to.
func (s *site) publish(from, to int) {
	s.t.Helper()
	for i := from; i < to; i++ {
		_, err := s.js.Publish(within(s.t), "a", fmt.Append(nil, i))
		must(s.t, err)
	}
}

// expect receives and acknowledges payloads until all from up to to were there.
func (s *site) expect(messages <-chan *message.Message, from, to int) (repeated int) {
	s.t.Helper()
	seen := make(map[string]bool)
	for i := from; i < to; i++ {
		seen[fmt.Sprint(i)] = false
	}
	for missing := to - from; missing > 0; {
		msg := receive(s.t, messages)
		was, wanted := seen[string(msg.Payload)]
		if wanted && !was {
			seen[string(msg.Payload)] = true
			missing--
		} else {
			repeated++
		}
		msg.Ack()
	}
	return repeated
}

// state waits until the group's consumer fulfils a condition.
func (s *site) state(group, what string, holds func(*natsjs.ConsumerInfo) bool) {
	s.t.Helper()
	var info *natsjs.ConsumerInfo
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		consumer, err := s.js.Consumer(within(s.t), "A", group+"~a")
		if err == nil {
			if info = consumer.CachedInfo(); holds(info) {
				return
			}
		}
	}
	s.t.Fatalf("not in time: %s; %+v", what, info)
}

func (s *site) restart() {
	s.t.Helper()
	must(s.t, s.server.Kill())
	must(s.t, s.server.Start(within(s.t)))
}

func TestASubscriptionSurvivesABrokerThatIsKilled(t *testing.T) {
	t.Parallel()
	for _, inFlight := range []int{1, 64} {
		t.Run(fmt.Sprint(inFlight), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			sub := s.subscriber("g")
			sub.MaxInFlight = inFlight
			sub.AckWait = 2 * time.Second
			messages := s.subscribe(sub)
			for round := range 3 {
				s.publish(round*20, round*20+10)
				s.restart()
				s.publish(round*20+10, round*20+20)
				s.expect(messages, round*20, round*20+20)
			}
			go func() { // what the server has forgotten of the acknowledgements
				for msg := range messages {
					msg.Ack()
				}
			}()
			s.state("g", "all are acknowledged", func(info *natsjs.ConsumerInfo) bool { return info.AckFloor.Stream == 60 })
		})
	}
}

// A message that is being handled when the broker goes away is acknowledged
// when it is back, and not delivered again.
func TestAnAcknowledgementOutlivesTheBroker(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.publish(0, 2)
	messages := s.subscribe(s.subscriber("g"))
	before, during := receive(t, messages), receive(t, messages)
	must(t, s.server.Kill())
	during.Ack()
	must(t, s.server.Start(within(t)))
	before.Ack()
	s.state("g", "both are acknowledged", func(info *natsjs.ConsumerInfo) bool {
		return info.AckFloor.Stream == 2 && info.Delivered.Consumer == 2
	})
}

// A frozen broker keeps connections open and says nothing.
func TestASubscriptionSurvivesAFrozenBroker(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	sub := s.subscriber("g")
	var log logbook
	sub.Logger = log.Logger()
	messages := s.subscribe(sub)
	s.publish(0, 5)
	s.expect(messages, 0, 5)
	must(t, s.server.Freeze())
	log.await(t, "the server does not answer")
	must(t, s.server.Thaw())
	s.publish(5, 10)
	s.expect(messages, 5, 10)
	log.await(t, "fetching messages again")
}

func TestASubscriptionCanBeClosedWhileTheBrokerIsAway(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"killed", "frozen"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.publish(0, 10)
			sub := s.subscriber("g")
			messages := s.subscribe(sub)
			msg := receive(t, messages)
			if how == "killed" {
				must(t, s.server.Kill())
			} else {
				must(t, s.server.Freeze())
			}
			msg.Ack()
			begun := time.Now()
			must(t, sub.Close())
			if took := time.Since(begun); took > sub.DrainTimeout+5*time.Second {
				t.Errorf("Close took %v", took)
			}
			if _, open := <-messages; open {
				t.Error("the channel is open")
			}
			if how == "frozen" { // or the connections cannot be closed in order
				must(t, s.server.Thaw())
			}
		})
	}
}

// The server may forget a consumer without a group when it is killed. The
// subscription goes on where it was.
func TestASubscriptionWithoutAGroupSurvivesABrokerThatIsKilled(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	sub := s.subscriber("")
	sub.AckWait = 2 * time.Second
	messages := s.subscribe(sub)
	s.publish(0, 100)
	s.expect(messages, 0, 100)
	s.restart()
	s.publish(100, 110)
	s.expect(messages, 100, 110)
}

func rows(n int) []outbox.Row {
	rows := make([]outbox.Row, n)
	for i := range rows {
		rows[i] = outbox.Row{ID: int64(i), DedupID: fmt.Sprint("dedup-", i), Topic: "a", UUID: fmt.Sprint("uuid-", i)}
	}
	return rows
}

func TestTheSinkSaysInTimeThatTheBrokerIsAway(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	sink := &jetstream.Sink{Conn: connect(t, s.server.URL())}
	batch := rows(100)
	away := func(timeout time.Duration) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		begun := time.Now()
		for i, err := range sink.PublishBatch(ctx, batch) {
			if !errors.Is(err, outbox.ErrUnavailable) || errors.Is(err, outbox.ErrRefused) {
				t.Fatalf("row %d: %v", i, err)
			}
		}
		if took := time.Since(begun); took > timeout+2*time.Second {
			t.Errorf("took %v", took)
		}
	}
	must(t, s.server.Freeze())
	away(500 * time.Millisecond)
	must(t, s.server.Kill())
	away(patience) // it does not wait for the deadline
	away(patience)
	must(t, s.server.Start(within(t)))

	var errs []error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if errs = sink.PublishBatch(within(t), batch); errors.Join(errs...) == nil {
			break
		}
	}
	must(t, errors.Join(errs...))
	// Some of the rows may have been sent twice or three times.
	stream, err := s.js.Stream(within(t), "A")
	must(t, err)
	if n := stream.CachedInfo().State.Msgs; n != 100 {
		t.Errorf("%d messages", n)
	}
}

func TestTheSinkLosesNothingWhenTheBrokerIsKilledInABatch(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	sink := &jetstream.Sink{Conn: connect(t, s.server.URL())}
	batch := rows(20_000)
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		time.Sleep(30 * time.Millisecond)
		must(t, s.server.Kill())
		must(t, s.server.Start(within(t)))
	}()
	left := batch
	for end := time.Now().Add(patience); len(left) > 0 && time.Now().Before(end); {
		var failed []outbox.Row
		for i, err := range sink.PublishBatch(within(t), left) {
			switch {
			case errors.Is(err, outbox.ErrUnavailable):
				failed = append(failed, left[i])
			case err != nil:
				t.Fatalf("row %d: %v", i, err)
			}
		}
		left = failed
		time.Sleep(10 * time.Millisecond)
	}
	<-killed
	if len(left) > 0 {
		t.Fatalf("%d rows are not published", len(left))
	}
	stream, err := s.js.Stream(within(t), "A")
	must(t, err)
	if n := stream.CachedInfo().State.Msgs; n != uint64(len(batch)) {
		t.Errorf("%d messages of %d", n, len(batch))
	}
}
