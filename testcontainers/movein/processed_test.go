package movein_test

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/middleware"
)

// The handler as it was.
func billOld(db *sql.DB) message.NoPublishHandlerFunc {
	return func(msg *message.Message) error {
		tx, err := db.BeginTx(msg.Context(), nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		result, err := tx.ExecContext(msg.Context(), `
			INSERT INTO processed_messages (consumer, message_id) VALUES ('billing', $1)
			ON CONFLICT DO NOTHING`, msg.UUID)
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); n == 0 {
			return err // a duplicate
		}
		if _, err := tx.ExecContext(msg.Context(), `INSERT INTO bills (id) VALUES ($1)`, string(msg.Payload)); err != nil {
			return err
		}
		return tx.Commit()
	}
}

// The first release: Once claims, and the old table still decides.
func billBoth(msg *message.Message) error {
	tx, ok := oncemill.TxFromContext(msg.Context())
	if !ok {
		return oncemill.ErrNoTx
	}
	result, err := tx.ExecContext(msg.Context(), `
		INSERT INTO processed_messages (consumer, message_id) VALUES ('billing', $1)
		ON CONFLICT DO NOTHING`, msg.UUID)
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); n == 0 {
		return err // handled before, by the old release: the claim is committed all the same
	}
	return billNew(msg)
}

// The second release: the claim alone decides.
func billNew(msg *message.Message) error {
	tx, ok := oncemill.TxFromContext(msg.Context())
	if !ok {
		return oncemill.ErrNoTx
	}
	_, err := tx.ExecContext(msg.Context(), `INSERT INTO bills (id) VALUES ($1)`, string(msg.Payload))
	return err
}

// A billing is the stream of orders and the workers that handle it.
type billing struct {
	*site
	published []string
	phase     atomic.Int64
	hired     int // workers under Once

	mu         sync.Mutex
	handled    map[string]string          // which release has handled a message first
	deliveries map[string]map[string]bool // which releases have had a message
	begun      map[string]int             // how many deliveries a release has had
}

func newBilling(t *testing.T) *billing {
	b := &billing{site: newSite(t, "orders"), handled: make(map[string]string), deliveries: make(map[string]map[string]bool), begun: make(map[string]int)}
	b.exec(fromGuide(t, "processed-table"))
	b.exec(`CREATE TABLE bills (id text)`)
	return b
}

// publish publishes n orders more.
func (b *billing) publish(n int) {
	b.t.Helper()
	publisher := &jetstream.Publisher{Conn: b.nc}
	for range n {
		id := fmt.Sprint("order-", len(b.published))
		must(b.t, publisher.Publish("orders", message.NewMessage(id, []byte(id))))
		b.published = append(b.published, id)
	}
}

// losesAcks has the ack of every delivery of a message get lost until the last phase, so
// that each release may get it after each other one. The order's number says how: of two
// of three messages only the ack of the first delivery that was handled is lost.
func (b *billing) losesAcks(release string) message.HandlerMiddleware {
	return func(h message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			b.mu.Lock()
			b.begun[release]++
			b.mu.Unlock()
			msgs, err := h(msg)
			if err != nil {
				return msgs, err
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			first := b.handled[msg.UUID] == ""
			if first {
				b.handled[msg.UUID] = release
				b.deliveries[msg.UUID] = make(map[string]bool)
			}
			b.deliveries[msg.UUID][release] = true
			if first || strings.HasSuffix(msg.UUID, "0") && b.phase.Load() == 0 {
				return nil, errOnPurpose
			}
			return msgs, nil
		}
	}
}

// hire starts a worker of a release, and returns what stops it.
func (b *billing) hire(release string) (stop func()) {
	b.t.Helper()
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	must(b.t, err)
	router.AddMiddleware(b.losesAcks(release))
	handler := billOld(b.db)
	if release != "old" {
		handler = map[string]message.NoPublishHandlerFunc{"both": billBoth, "new": billNew}[release]
		b.hired++
		inbox := &oncemill.Inbox{DB: b.db, Batch: 16 * (b.hired % 2)} // every other one has batches
		must(b.t, consumers.Stack{Once: middleware.Once{Inbox: inbox}}.Apply(within(b.t), router))
	}
	subscriber := &jetstream.Subscriber{Conn: b.nc, Group: "billing", NakDelay: soon, MaxInFlight: 8}
	router.AddConsumerHandler("billing", "orders", subscriber, handler)
	ended := make(chan error, 1)
	go func() { ended <- router.Run(context.Background()) }()
	<-router.Running()
	stop = sync.OnceFunc(func() {
		must(b.t, router.Close())
		must(b.t, <-ended)
	})
	b.t.Cleanup(stop)
	return stop
}

// served publishes orders until each release has had deliveries, and then ends all
// connections to the database, with whatever was under way.
func (b *billing) served(releases ...string) {
	b.t.Helper()
	b.mu.Lock()
	before := make(map[string]int)
	for _, release := range releases {
		before[release] = b.begun[release]
	}
	b.mu.Unlock()
	poll(b.t, fmt.Sprint(releases, " have had messages"), func() bool {
		b.publish(5)
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, release := range releases {
			if b.begun[release] < before[release]+40 {
				return false
			}
		}
		return true
	})
	b.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
}

// balance waits until all orders are acknowledged, and wants each to be billed once.
func (b *billing) balance() {
	b.t.Helper()
	b.phase.Store(1)
	b.settled("billing~orders")
	once(b.t, "bills", b.column(`SELECT id FROM bills`), b.published)
}

// crossed is how many messages of one release another has had too.
func (b *billing) crossed(from, to string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for uuid, release := range b.handled {
		if release == from && b.deliveries[uuid][to] {
			n++
		}
	}
	return n
}

// The steps of the guide, with workers of two releases side by side in each of them.
func TestFromATableOfProcessedMessagesInTwoReleasesEveryMessageIsHandledOnce(t *testing.T) {
	t.Parallel()
	b := newBilling(t)
	old1, old2 := b.hire("old"), b.hire("old")
	b.served("old")

	old1()
	both1 := b.hire("both") // beside the other old one
	b.served("old", "both")
	old2()
	both2 := b.hire("both")
	b.served("both") // the last old one is gone

	b.exec(fromGuide(t, "copy-claims"))
	b.served("both")

	both1()
	b.hire("new")
	b.served("both", "new")
	both2()
	b.served("new")
	b.balance()
	for _, pair := range [][2]string{{"old", "both"}, {"old", "new"}, {"both", "new"}, {"both", "old"}, {"new", "both"}} {
		n := b.crossed(pair[0], pair[1])
		t.Logf("%d messages that were handled by release %s were delivered to %s too", n, pair[0], pair[1])
		if n == 0 && pair != [2]string{"new", "both"} && pair != [2]string{"both", "old"} {
			t.Errorf("no message of %s came to %s", pair[0], pair[1])
		}
	}
}

// The guide's shorter way, with a pause.
func TestFromATableOfProcessedMessagesWithAPauseEveryMessageIsHandledOnce(t *testing.T) {
	t.Parallel()
	b := newBilling(t)
	old1, old2 := b.hire("old"), b.hire("old")
	b.served("old")
	old1()
	old2()
	b.exec(fromGuide(t, "copy-claims"))
	b.hire("new")
	b.hire("new")
	b.served("new")
	b.balance()
	if b.crossed("old", "new") == 0 {
		t.Error("no message of old came to new")
	}
}

// The guide's way back.
func TestBackToATableOfProcessedMessagesEveryMessageIsHandledOnce(t *testing.T) {
	t.Parallel()
	b := newBilling(t)
	old := b.hire("old")
	b.served("old")
	old()
	b.exec(fromGuide(t, "copy-claims"))
	recent := b.hire("new")
	b.served("new")

	both := b.hire("both")
	b.served("new", "both")
	recent()
	b.exec(fromGuide(t, "copy-back"))
	b.hire("old")
	b.served("both", "old")
	both()
	b.served("old")
	b.balance()
	if b.crossed("new", "old") == 0 {
		t.Error("no message of new came to old")
	}
}

// What the guide copies is found by Once, whatever the id.
func TestCopiedClaimsAreDuplicatesWhateverTheirKey(t *testing.T) {
	t.Parallel()
	b := newBilling(t)
	ids := []string{"order-7", "it's", `a\b`, "ä", " ", "oncemill:hex:00", "oncemill:", "oncemill:" + strings.Repeat("x", 240), "oncemill:" + strings.Repeat("x", 241),
		strings.Repeat("k", 512), strings.Repeat("k", 513), strings.Repeat("ä", 256), strings.Repeat("ä", 257), strings.Repeat("k", 2000), "Oncemill:x"}
	for _, id := range ids {
		b.exec(`INSERT INTO processed_messages (consumer, message_id) VALUES ('billing', $1), ('shipping', $1)`, id)
	}
	b.exec(`INSERT INTO processed_messages VALUES ('billing', 'ancient', now() - interval '30 days')`)
	b.exec(fromGuide(t, "copy-claims"))
	b.exec(fromGuide(t, "copy-claims")) // again does nothing
	if n := b.count(`SELECT count(*) FROM oncemill.claims`); n != len(ids) {
		t.Errorf("%d claims, want %d", n, len(ids))
	}
	consumer := (&oncemill.Inbox{DB: b.db}).Consumer("billing")
	for _, id := range ids {
		must(t, consumer.Once(within(t), id, func(context.Context, oncemill.Tx) error {
			t.Errorf("%.40q is run again", id)
			return nil
		}))
	}
	// What is not copied since it is too old is refused.
	err := consumer.OnceWith(within(t), "ancient", oncemill.ClaimOptions{Origin: time.Now().Add(-30 * 24 * time.Hour)}, func(context.Context, oncemill.Tx) error {
		t.Error("ancient is run again")
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), oncemill.ErrTooOld.Error()) {
		t.Errorf("ancient: %v", err)
	}
	// And a new one runs, of the same time as those that were copied.
	ran := false
	must(t, consumer.OnceWith(within(t), "new", oncemill.ClaimOptions{Origin: time.Now().Add(-6 * 24 * time.Hour)}, func(context.Context, oncemill.Tx) error {
		ran = true
		return nil
	}))
	if !ran {
		t.Error("a new message is not run")
	}
}

// Batches that claim while claims are copied do not deadlock with the copy, or are tried
// again: in the end each message is handled once.
func TestClaimsAreCopiedBesideWorkersInBatches(t *testing.T) {
	t.Parallel()
	b := newBilling(t)
	const n = 2000
	b.exec(`INSERT INTO processed_messages (consumer, message_id) SELECT 'billing', 'order-' || i FROM generate_series(1, $1) AS i`, n)
	inbox := &oncemill.Inbox{DB: b.db, Batch: 64}
	consumer := inbox.Consumer("billing")
	tx, err := b.db.Begin()
	must(t, err)
	defer tx.Rollback()
	_, err = tx.Exec(strings.NewReplacer("BEGIN;", "", "COMMIT;", "").Replace(fromGuide(t, "copy-claims")))
	must(t, err)
	var wg sync.WaitGroup
	for i := n; i > n-100; i-- { // while the copy is not committed
		wg.Go(func() {
			for {
				err := consumer.Once(within(t), fmt.Sprint("order-", i), func(context.Context, oncemill.Tx) error {
					t.Errorf("order-%d is run again", i)
					return nil
				})
				if err == nil {
					return
				}
			}
		})
	}
	poll(t, "a batch waits for the copy", func() bool {
		return b.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) > 0
	})
	must(t, tx.Commit())
	wg.Wait()
}
