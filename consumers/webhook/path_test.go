package webhook_test

import (
	"context"
	"crypto/rand"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
)

// From the provider to the worker: events are delivered three times, some replies are
// lost, the relay publishes rows twice under fresh dedup ids, and every effect is there
// once.
func TestAnEventReachesItsWorkerOnce(t *testing.T) {
	t.Parallel()
	const events = 20
	s := newSite(t)
	topic := "t" + strings.ToLower(rand.Text()[:10])
	nc, err := nats.Connect(testenv.NATSURL(t))
	must(t, err)
	t.Cleanup(nc.Close)
	js, err := natsjs.New(nc)
	must(t, err)
	stream, err := js.CreateStream(within(t), natsjs.StreamConfig{Name: topic, Subjects: []string{topic}, Storage: natsjs.MemoryStorage})
	must(t, err)
	t.Cleanup(func() { must(t, js.DeleteStream(context.Background(), topic)) })
	_, err = s.db.Exec(`CREATE TABLE effects (event text, body text)`)
	must(t, err)

	receiver := s.stripe()
	receiver.Topic = topic
	bodies := make(map[string]string)
	for i := range events {
		id := "evt_" + strings.ToLower(rand.Text())
		for n := range 3 {
			body := stripeEvent(id, n)
			if n == 0 {
				bodies[id] = body
			}
			w := httptest.NewRecorder()
			func() {
				defer func() { _ = recover() }()
				receiver.ServeHTTP(lossy{w, n == 0 && i%2 == 0}, fromStripe(stripeSecret, body, time.Now()).request())
			}()
			s.wantStatus(w, http.StatusOK, "a delivery")
		}
	}
	s.wantStored(events)
	// As if a relay had died between publishing and its commit, and the stream had
	// forgotten the dedup ids.
	_, err = s.db.Exec(`INSERT INTO oncemill.outbox (topic, uuid, metadata, payload) SELECT topic, uuid, metadata, payload FROM oncemill.outbox`)
	must(t, err)
	s.work(nc, topic, 2*events)

	info, err := stream.Info(within(t))
	must(t, err)
	if info.State.Msgs != 2*events {
		t.Errorf("%d messages in the stream, want %d", info.State.Msgs, 2*events)
	}
	if n := s.count(`SELECT count(*) FROM effects`); n != events {
		t.Errorf("%d effects, want %d", n, events)
	}
	for id, body := range bodies {
		var got string
		must(t, s.db.QueryRow(`SELECT body FROM effects WHERE event = $1`, id).Scan(&got))
		if got != body {
			t.Errorf("%s: the worker got %s, want %s", id, got, body)
		}
	}
}

// work runs a relay and a worker until so many messages are handled.
func (s *site) work(nc *nats.Conn, topic string, messages int) {
	s.t.Helper()
	handled := make(chan struct{}, 1000)
	note := func(context.Context, string, string) { handled <- struct{}{} }
	inbox := &oncemill.Inbox{DB: s.db, LockWait: time.Minute, Observer: &oncemill.Observer{
		Committed: func(ctx context.Context, consumer, key string, _ time.Duration) { note(ctx, consumer, key) },
		Duplicate: note,
	}}
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	must(s.t, err)
	must(s.t, consumers.Stack{Once: middleware.Once{Inbox: inbox}}.Apply(within(s.t), router))
	router.AddConsumerHandler("worker", topic, &jetstream.Subscriber{Conn: nc, Group: "worker"}, func(msg *message.Message) error {
		tx, _ := oncemill.TxFromContext(msg.Context())
		_, err := tx.ExecContext(msg.Context(), `INSERT INTO effects VALUES ($1, $2)`, msg.UUID, string(msg.Payload))
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	relay := &outbox.Relay{DB: s.db, Sink: &jetstream.Sink{Conn: nc}}
	var wg sync.WaitGroup
	wg.Go(func() { must(s.t, router.Run(ctx)) })
	wg.Go(func() { must(s.t, relay.Run(ctx)) })
	defer func() {
		cancel()
		wg.Wait()
	}()
	limit := within(s.t)
	for range messages {
		select {
		case <-handled:
		case <-limit.Done():
			s.t.Fatalf("not all messages have come\n%s", s.log)
		}
	}
}
