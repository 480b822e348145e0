package movein_test

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	wmsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/outbox/watermillsql"
)

// The program as it was.

func publishOld(tx *sql.Tx, msg *message.Message) error {
	publisher, err := wmsql.NewPublisher(tx, wmsql.PublisherConfig{
		SchemaAdapter: wmsql.DefaultPostgreSQLSchema{},
	}, logger)
	if err != nil {
		return err
	}
	wrapped := forwarder.NewPublisher(publisher, forwarder.PublisherConfig{ForwarderTopic: "events_to_forward"})
	return wrapped.Publish("orders", msg)
}

// The program with one line changed, and one that has none of watermill-sql any more.

func publishOneLine(tx *sql.Tx, msg *message.Message) error {
	publisher, err := wmsql.NewPublisher(tx, wmsql.PublisherConfig{
		SchemaAdapter: watermillsql.Schema{ForwarderTopic: "events_to_forward"},
	}, logger)
	if err != nil {
		return err
	}
	wrapped := forwarder.NewPublisher(publisher, forwarder.PublisherConfig{ForwarderTopic: "events_to_forward"})
	return wrapped.Publish("orders", msg)
}

func publishUnwrapped(tx *sql.Tx, msg *message.Message) error {
	publisher, err := wmsql.NewPublisher(tx, wmsql.PublisherConfig{SchemaAdapter: watermillsql.Schema{}}, logger)
	if err != nil {
		return err
	}
	return publisher.Publish("orders", msg)
}

func publishNew(tx *sql.Tx, msg *message.Message) error {
	return outbox.InTx(tx).Publish("orders", msg)
}

// subscribeOld is the subscriber of the forwarder that there was.
func (s *site) subscribeOld() *wmsql.Subscriber {
	s.t.Helper()
	subscriber, err := wmsql.NewSubscriber(s.db, wmsql.SubscriberConfig{
		SchemaAdapter:    wmsql.DefaultPostgreSQLSchema{},
		OffsetsAdapter:   wmsql.DefaultPostgreSQLOffsetsAdapter{},
		InitializeSchema: true,
		PollInterval:     10 * time.Millisecond, RetryInterval: 10 * time.Millisecond,
	}, logger)
	must(s.t, err)
	return subscriber
}

// forward runs Watermill's forwarder until stop is called.
func (s *site) forward(to message.Publisher) (stop func()) {
	s.t.Helper()
	f, err := forwarder.NewForwarder(s.subscribeOld(), to, logger, forwarder.Config{ForwarderTopic: "events_to_forward"})
	must(s.t, err)
	ended := make(chan error, 1)
	go func() { ended <- f.Run(context.Background()) }()
	<-f.Running()
	stop = sync.OnceFunc(func() {
		must(s.t, f.Close())
		must(s.t, <-ended)
	})
	s.t.Cleanup(stop)
	return stop
}

// writers write orders, each with its message, until they are stopped. One in ten
// transactions is rolled back.
type writers struct {
	publish []atomic.Pointer[func(*sql.Tx, *message.Message) error] // of each writer
	wrote   atomic.Int64
	stop    func()
}

func (s *site) write(n int) *writers {
	s.t.Helper()
	s.exec(`CREATE TABLE IF NOT EXISTS orders (id text PRIMARY KEY)`)
	w := &writers{publish: make([]atomic.Pointer[func(*sql.Tx, *message.Message) error], n)}
	done := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		w.become(i, publishOld)
		wg.Go(func() {
			for nth := 0; ; nth++ {
				select {
				case <-done:
					return
				case <-time.After(time.Millisecond): // leave some of the machine to others
				}
				if err := s.order(fmt.Sprintf("writer-%d-%d", i, nth), nth%10 == 9, *w.publish[i].Load()); err != nil {
					s.t.Error(err)
					return
				}
				w.wrote.Add(1)
			}
		})
	}
	w.stop = sync.OnceFunc(func() { close(done); wg.Wait() })
	s.t.Cleanup(w.stop)
	return w
}

func (w *writers) become(i int, publish func(*sql.Tx, *message.Message) error) {
	w.publish[i].Store(&publish)
}

// more waits until the writers have written so many orders more.
func (w *writers) more(t *testing.T, n int64) {
	t.Helper()
	until := w.wrote.Load() + n
	poll(t, "the writers go on", func() bool { return w.wrote.Load() >= until })
}

func (s *site) order(id string, rollBack bool, publish func(*sql.Tx, *message.Message) error) error {
	tx, err := s.db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.Exec(`INSERT INTO orders VALUES ($1)`, id); err != nil {
		return err
	}
	if err := publish(tx, message.NewMessage(id, []byte(id))); err != nil || rollBack {
		return err
	}
	return tx.Commit()
}

func (s *site) ordered() []string { return s.column(`SELECT id FROM orders`) }

// handle runs a consumer under Once that notes what it has handled.
func (s *site) handle() {
	s.t.Helper()
	s.exec(`CREATE TABLE handled (id text)`)
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	must(s.t, err)
	must(s.t, consumers.Stack{Once: middleware.Once{Inbox: &oncemill.Inbox{DB: s.db}}}.Apply(within(s.t), router))
	router.AddConsumerHandler("shipping", "orders", &jetstream.Subscriber{Conn: s.nc, Group: "shipping"}, func(msg *message.Message) error {
		tx, _ := oncemill.TxFromContext(msg.Context())
		_, err := tx.ExecContext(msg.Context(), `INSERT INTO handled VALUES ($1)`, msg.UUID)
		return err
	})
	ended := make(chan error, 1)
	go func() { ended <- router.Run(context.Background()) }()
	<-router.Running()
	s.t.Cleanup(func() {
		must(s.t, router.Close())
		must(s.t, <-ended)
	})
}

// forwarderBatch is how many messages a forwarder may send again that was stopped in the
// middle of a batch: the subscriber's default.
const forwarderBatch = 100

// balance wants every order to be handled once, and its message sent by the relay once at
// most: only a forwarder that was stopped may have sent some that are sent again.
func (s *site) balance(stops int) {
	s.t.Helper()
	s.settled("shipping~orders")
	once(s.t, "handled", s.column(`SELECT id FROM handled`), s.ordered())
	relayed := make(map[string]bool)
	all := s.sent()
	for _, msg := range all {
		if msg.relayed && relayed[msg.uuid] {
			s.t.Errorf("%s was moved and sent twice", msg.uuid)
		}
		relayed[msg.uuid] = relayed[msg.uuid] || msg.relayed
	}
	again := len(all) - len(s.ordered())
	s.t.Logf("%d messages, %d of them sent again", len(all), again)
	if again > stops*forwarderBatch {
		s.t.Errorf("%d messages were sent again", again)
	}
}

// The steps of the guide, with its commands, while orders are written all the time.
func TestFromAForwarderEveryMessageIsHandledOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t, "orders")
	s.handle()
	publisher := &jetstream.Publisher{Conn: s.nc}
	stopForwarder := s.forward(publisher)
	w := s.write(4)
	w.more(t, 100)

	s.run("migrate")
	relay := s.start("relay")
	if out := s.run("drain-dry-run"); !strings.Contains(out, "nothing was moved") {
		t.Error(out)
	}
	stopForwarder()
	drain := s.start("drain-follow")
	drain.await("drain begins")
	for i, publish := range []func(*sql.Tx, *message.Message) error{publishOneLine, publishUnwrapped, publishNew} {
		w.more(t, 50)
		w.become(i, publish)
	}
	w.more(t, 100)
	w.become(3, publishNew) // the last old writer is gone
	w.more(t, 50)           // and what it was in the middle of too
	drain.stop()
	if out := s.run("drain-rest"); !strings.Contains(out, "messages moved, 0 of them parked") {
		t.Error(out)
	}
	stored := s.count(`SELECT count(*) FROM watermill_events_to_forward`)
	if out := s.run("drain-rest"); !strings.HasPrefix(out, "0 messages moved") {
		t.Error(out)
	}
	w.more(t, 50)
	w.stop()
	poll(t, "everything is sent", func() bool { return s.count(`SELECT count(*) FROM oncemill.outbox`) == 0 })
	relay.stop()
	if s.count(`SELECT count(*) FROM watermill_events_to_forward`) != stored || stored < 100 {
		t.Errorf("%d messages are in the old table", stored)
	}
	s.balance(1)
}

// The guide's way back: the forwarder goes on where the drain was.
func TestBackToTheForwarderEveryMessageIsHandledOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t, "orders")
	s.handle()
	publisher := &jetstream.Publisher{Conn: s.nc}
	stopForwarder := s.forward(publisher)
	w := s.write(2)
	w.more(t, 50)
	relay := s.start("relay")
	stopForwarder()
	drain := s.start("drain-follow")
	drain.await("drain begins")
	w.become(0, publishNew)
	w.more(t, 100)
	drain.stop()

	stopForwarder = s.forward(publisher)
	w.become(0, publishOld)
	w.more(t, 50)
	w.stop()
	poll(t, "everything is handled", func() bool { return s.count(`SELECT count(*) FROM handled`) >= len(s.ordered()) })
	stopForwarder()
	relay.stop()
	s.balance(1)
}

// Both lock the row of their group, and each message is had by one of them.
func TestAForwarderBesideADrainSharesTheMessages(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	forwarded := new(recorder)
	stopForwarder := s.forward(forwarded)
	w := s.write(4)
	w.more(t, 20)
	ctx, stop := context.WithCancel(within(t))
	ended := make(chan error, 1)
	go func() {
		_, err := (&watermillsql.Drain{DB: s.db, Topic: "events_to_forward", Follow: true, Batch: 5,
			PollInterval: 5 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)}).Run(ctx)
		ended <- err
	}()
	// Until both have had some, and a good deal is written.
	poll(t, "both have messages", func() bool {
		return forwarded.count() > 50 && s.count(`SELECT count(*) FROM oncemill.outbox`) > 50 && w.wrote.Load() > 500
	})
	w.stop()
	poll(t, "nothing is left", func() bool {
		return forwarded.count()+s.count(`SELECT count(*) FROM oncemill.outbox`) >= len(s.ordered())
	})
	stopForwarder()
	stop()
	must(t, <-ended)
	moved := s.column(`SELECT uuid FROM oncemill.outbox`)
	t.Logf("%d were forwarded, %d moved", forwarded.count(), len(moved))
	once(t, "forwarded and moved", append(moved, forwarded.uuids...), s.ordered())
}

// A recorder is a publisher that remembers what is published.
type recorder struct {
	mu    sync.Mutex
	uuids []string
}

func (r *recorder) Publish(_ string, msgs ...*message.Message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, msg := range msgs {
		r.uuids = append(r.uuids, msg.UUID)
	}
	return nil
}

func (r *recorder) Close() error { return nil }

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.uuids)
}
