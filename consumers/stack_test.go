package consumers_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	wm "github.com/ThreeDotsLabs/watermill/message/router/middleware"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"
	"go.uber.org/goleak"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/internal/delivery"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func newDB(t *testing.T) *sql.DB {
	t.Helper()
	db := testenv.DB(t)
	_, err := db.Exec(`CREATE TABLE effects (name text)`)
	must(t, err)
	return db
}

func count(t *testing.T, db *sql.DB, query string, args ...any) (n int) {
	t.Helper()
	must(t, db.QueryRow(query, args...).Scan(&n))
	return n
}

func effect(msg *message.Message) error {
	tx, ok := oncemill.TxFromContext(msg.Context())
	if !ok {
		return errors.New("no transaction")
	}
	_, err := tx.ExecContext(msg.Context(), `INSERT INTO effects VALUES ($1)`, msg.UUID)
	return err
}

// scripted is a subscriber whose deliveries the test makes, one at a time: what
// a broker does after a nack is the test's decision.
type scripted struct{ messages chan *message.Message }

func (s scripted) Subscribe(context.Context, string) (<-chan *message.Message, error) {
	return s.messages, nil
}
func (s scripted) Close() error { return nil }

// worker is a router with a Stack and one handler, fed by the test.
type worker struct {
	t    *testing.T
	feed chan *message.Message
}

func newWorker(t *testing.T, stack consumers.Stack, h message.NoPublishHandlerFunc) *worker {
	t.Helper()
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	must(t, err)
	must(t, stack.Apply(within(t), router))
	w := &worker{t: t, feed: make(chan *message.Message)}
	router.AddConsumerHandler("billing", "orders", scripted{w.feed}, h)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- router.Run(ctx) }()
	t.Cleanup(func() {
		close(w.feed)
		cancel()
		must(t, <-done)
	})
	return w
}

// deliver returns whether the message was acknowledged.
func (w *worker) deliver(msg *message.Message, info delivery.Info) bool {
	w.t.Helper()
	ctx, cancel := context.WithCancel(delivery.With(within(w.t), info))
	defer cancel()
	msg = msg.Copy()
	msg.SetContext(ctx)
	w.feed <- msg
	select {
	case <-msg.Acked():
		return true
	case <-msg.Nacked():
		return false
	case <-ctx.Done():
		w.t.Fatal("the message was neither acked nor nacked")
		return false
	}
}

// letters returns the dead letters in the outbox.
func letters(t *testing.T, db *sql.DB) (metadata []map[string]string) {
	t.Helper()
	rows, err := db.Query(`SELECT metadata FROM oncemill.outbox WHERE topic = 'dead-letter' ORDER BY id`)
	must(t, err)
	defer rows.Close()
	for rows.Next() {
		var text []byte
		must(t, rows.Scan(&text))
		var m map[string]string
		must(t, json.Unmarshal(text, &m))
		metadata = append(metadata, m)
	}
	must(t, rows.Err())
	return metadata
}

func TestAHandlerThatKeepsFailingMakesADeadLetter(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(){"error": func() {}, "panic": func() { panic("boom\nboom") }} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := newDB(t)
			var runs atomic.Int32
			w := newWorker(t, consumers.Stack{Once: middleware.Once{Inbox: &oncemill.Inbox{DB: db}}, MaxErrors: 3}, func(msg *message.Message) error {
				runs.Add(1)
				must(t, effect(msg))
				fail()
				return errors.New("boom")
			})
			msg := message.NewMessage("u", []byte("payload"))
			msg.Metadata.Set("kept", "yes")
			for i, acked := range []bool{false, false, true, true} {
				if got := w.deliver(msg, delivery.Info{Position: "p", Attempt: uint64(i + 1)}); got != acked {
					t.Errorf("delivery %d: acked %v, want %v", i+1, got, acked)
				}
			}
			if runs.Load() != 3 {
				t.Errorf("ran %d times, want 3", runs.Load())
			}
			dead := letters(t, db)
			if len(dead) != 1 {
				t.Fatalf("%d dead letters, want 1", len(dead))
			}
			for name, want := range map[string]string{
				"kept": "yes", wm.PoisonedTopicKey: "orders", wm.PoisonedHandlerKey: "billing",
				consumers.DeadConsumer: "billing", consumers.DeadKey: "u", consumers.DeadUUID: "u", consumers.DeadErrors: "3", consumers.DeadPosition: "p",
			} {
				if dead[0][name] != want {
					t.Errorf("%s: got %q, want %q", name, dead[0][name], want)
				}
			}
			if reason := dead[0][wm.ReasonForPoisonedKey]; !strings.Contains(reason, "boom") || strings.Contains(reason, "\n") {
				t.Errorf("reason: %q", reason)
			}
			if n := count(t, db, `SELECT count(*) FROM oncemill.claims WHERE consumer = 'billing' AND key = 'u' AND outcome = 'dead'`); n != 1 {
				t.Error("the claim is not settled as dead")
			}
			if n := count(t, db, `SELECT (SELECT count(*) FROM effects) + (SELECT count(*) FROM oncemill.handler_errors)`); n != 0 {
				t.Error("effects or counts are left of a message that was given up")
			}
			if n := count(t, db, `SELECT count(*) FROM oncemill.outbox WHERE uuid <> 'u' AND payload = 'payload'`); n != 1 {
				t.Error("the dead letter has lost the payload, or has the message's UUID")
			}
		})
	}
}

func TestOnlyHandlerErrorsCount(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	inbox := &oncemill.Inbox{DB: db, LockWait: 10 * time.Millisecond}
	var fail atomic.Pointer[error]
	w := newWorker(t, consumers.Stack{Once: middleware.Once{Inbox: inbox}, MaxErrors: 1}, func(msg *message.Message) error {
		tx, _ := oncemill.TxFromContext(msg.Context())
		if err := *fail.Load(); err != nil {
			return err
		}
		_, err := tx.Exec(`SELECT pg_terminate_backend(pg_backend_pid())`)
		return err
	})
	msg := message.NewMessage("u", nil)
	for name, err := range map[string]error{
		"terminated": nil,
		"deadlock":   &pq.Error{Code: "40P01"},
		"unavailable": fmt.Errorf("handler: %w",
			oncemill.ErrUnavailable),
	} {
		fail.Store(&err)
		if w.deliver(msg, delivery.Info{}) {
			t.Errorf("%s: acked", name)
		}
	}
	must(t, (&oncemill.Inbox{DB: db}).Consumer("billing").Once(within(t), "u", func(context.Context, oncemill.Tx) error {
		if w.deliver(msg, delivery.Info{}) { // in flight elsewhere
			t.Error("in flight: acked")
		}
		return nil
	}))
	if n := count(t, db, `SELECT count(*) FROM oncemill.handler_errors`); n != 0 || len(letters(t, db)) != 0 {
		t.Errorf("%d errors were counted, dead letters: %v", n, letters(t, db))
	}
}

func TestADeadlockIsRunAgainAtOnce(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	var runs atomic.Int32
	w := newWorker(t, consumers.Stack{Once: middleware.Once{Inbox: &oncemill.Inbox{DB: db}}}, func(msg *message.Message) error {
		if runs.Add(1) < 3 {
			return &pq.Error{Code: "40P01"}
		}
		return effect(msg)
	})
	if !w.deliver(message.NewMessage("u", nil), delivery.Info{}) || runs.Load() != 3 {
		t.Errorf("not acked after %d runs", runs.Load())
	}
}

func TestMessagesThatCanNeverRunAreDeadLettersAtOnce(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	once := middleware.Once{Inbox: &oncemill.Inbox{DB: db}, Fingerprint: middleware.PayloadFingerprint}
	w := newWorker(t, consumers.Stack{Once: once}, effect)
	_, err := db.Exec(`INSERT INTO oncemill.watermarks VALUES ('billing', now() - interval '1 hour')`)
	must(t, err)
	dead := func(reason string, msg *message.Message, info delivery.Info) {
		t.Helper()
		before := len(letters(t, db))
		for range 2 { // the acknowledgement of the first was lost
			if !w.deliver(msg, info) {
				t.Errorf("%s: not acked", reason)
			}
		}
		after := letters(t, db)
		if len(after) != before+1 || !strings.Contains(after[before][wm.ReasonForPoisonedKey], reason) {
			t.Errorf("%s: got dead letters %v", reason, after[before:])
		}
	}
	if !w.deliver(message.NewMessage("u", []byte("one")), delivery.Info{}) {
		t.Error("not acked")
	}
	dead("another payload", message.NewMessage("u", []byte("two")), delivery.Info{})
	dead("another payload", message.NewMessage("u", []byte("three")), delivery.Info{})
	dead("no idempotency key", message.NewMessage("", nil), delivery.Info{Position: "1"})
	dead("no idempotency key", message.NewMessage("", nil), delivery.Info{Position: "2"})
	dead("older than", message.NewMessage("old", nil), delivery.Info{Time: time.Now().Add(-2 * time.Hour)})
	if n := count(t, db, `SELECT count(*) FROM effects`); n != 1 {
		t.Errorf("%d effects, want 1", n)
	}
}

// A producer can put anything into headers. It cannot delay the letter of its message, or
// keep it from being written, or have it say what is not so.
func TestADeadLetterIsNotWhatItsMessageSaysItIs(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	w := newWorker(t, consumers.Stack{Once: middleware.Once{Inbox: &oncemill.Inbox{DB: db}}}, effect)
	for i, after := range []string{"never", "9999-01-01T00:00:00Z"} {
		msg := message.NewMessage("", nil)
		msg.Metadata = message.Metadata{
			outbox.DeliverAfterMetadata: after, consumers.DeadKey: "another's", consumers.DeadReused: "another's", consumers.DeadOffset: "7", "kept": "yes",
		}
		if !w.deliver(msg, delivery.Info{Position: fmt.Sprint(i)}) {
			t.Fatalf("%s: not acked", after)
		}
	}
	dead := letters(t, db)
	if len(dead) != 2 {
		t.Fatalf("%d dead letters, want 2", len(dead))
	}
	for _, letter := range dead {
		for _, name := range []string{outbox.DeliverAfterMetadata, consumers.DeadKey, consumers.DeadReused, consumers.DeadOffset} {
			if value, ok := letter[name]; ok {
				t.Errorf("%s is %q", name, value)
			}
		}
		if letter["kept"] != "yes" {
			t.Errorf("metadata %v", letter)
		}
	}
}

// The key under which a message without one is given up is made up. Whoever sends a
// message under that key does not make the other one look like a duplicate.
func TestNoMessageTakesTheKeyOfADeadLetter(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	w := newWorker(t, consumers.Stack{Once: middleware.Once{Inbox: &oncemill.Inbox{DB: db}}}, effect)
	for position, uuid := range map[string]string{"0": "oncemill:dead:position:1", "1": ""} {
		if !w.deliver(message.NewMessage(uuid, nil), delivery.Info{Position: position}) {
			t.Errorf("%q: not acked", uuid)
		}
	}
	if n := count(t, db, `SELECT count(*) FROM effects`); n != 0 || len(letters(t, db)) != 2 {
		t.Errorf("%d effects and the letters %v", n, letters(t, db))
	}
}

// The key in a letter is what the table has, for the statement that deletes the claim, and
// the letter is little larger than its message.
func TestADeadLetterHasTheKeyOfItsClaim(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	w := newWorker(t, consumers.Stack{Once: middleware.Once{Inbox: &oncemill.Inbox{DB: db}}, MaxErrors: 1}, func(*message.Message) error {
		return errors.New("no")
	})
	for _, uuid := range []string{strings.Repeat("x", 40_000), "\xff", "oncemill:x", "plain"} {
		if !w.deliver(message.NewMessage(uuid, nil), delivery.Info{}) {
			t.Fatalf("%.20q: not acked", uuid)
		}
	}
	for _, letter := range letters(t, db) {
		if n := count(t, db, `SELECT count(*) FROM oncemill.claims WHERE consumer = 'billing' AND key = $1 AND outcome = 'dead'`, letter[consumers.DeadKey]); n != 1 {
			t.Errorf("%d claims have the key %q", n, letter[consumers.DeadKey])
		}
	}
	if n := count(t, db, `SELECT max(pg_column_size(metadata::text)) FROM oncemill.outbox`); n > 42_100 {
		t.Errorf("a letter has %d bytes of metadata", n)
	}
}

func TestADeadLetterKeepsWhatNoHeaderCanHold(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	w := newWorker(t, consumers.Stack{Once: middleware.Once{Inbox: &oncemill.Inbox{DB: db}}, MaxErrors: 1}, func(*message.Message) error {
		return errors.New("bad \x00 \xff")
	})
	msg := message.NewMessage("u\x00\xff", nil)
	msg.Metadata.Set("binary", "\x00\xff")
	if !w.deliver(msg, delivery.Info{}) {
		t.Fatal("not acked")
	}
	var stored string
	must(t, db.QueryRow(`SELECT metadata::text FROM oncemill.outbox`).Scan(&stored))
	if !strings.Contains(stored, "base64") {
		t.Errorf("got %s", stored)
	}
}

func TestADeliveryLimitIsForMessagesThatKillTheirProcess(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	var runs atomic.Int32
	w := newWorker(t, consumers.Stack{Once: middleware.Once{Inbox: &oncemill.Inbox{DB: db}}, MaxDeliveries: 5}, func(*message.Message) error {
		runs.Add(1) // and would end the process here
		return errors.New("no")
	})
	msg := message.NewMessage("u", nil)
	if w.deliver(msg, delivery.Info{Attempt: 5}) || !w.deliver(msg, delivery.Info{Attempt: 6}) || len(letters(t, db)) != 1 {
		t.Errorf("dead letters: %v", letters(t, db))
	}
	if runs.Load() != 1 {
		t.Errorf("the handler ran %d times, want 1: not beyond the limit", runs.Load())
	}
	// What was handled before is a duplicate, however often it comes.
	settled := message.NewMessage("settled", nil)
	must(t, (&oncemill.Inbox{DB: db}).Consumer("billing").Once(within(t), "settled", func(context.Context, oncemill.Tx) error { return nil }))
	if !w.deliver(settled, delivery.Info{Attempt: 100}) || len(letters(t, db)) != 1 {
		t.Errorf("dead letters: %v", letters(t, db))
	}
}

func TestKeysThatCannotBeHadMakeADeadLetter(t *testing.T) {
	t.Parallel()
	for name, key := range map[string]middleware.KeyFunc{
		"empty": func(*message.Message) (string, error) { return "", nil },
		"panic": func(msg *message.Message) (string, error) { return string(msg.Payload[3:]), nil },
	} {
		db := newDB(t)
		w := newWorker(t, consumers.Stack{Once: middleware.Once{Inbox: &oncemill.Inbox{DB: db}, Key: key}}, effect)
		for range 2 {
			if !w.deliver(message.NewMessage("u", nil), delivery.Info{Position: "p"}) {
				t.Errorf("%s: not acked", name)
			}
		}
		if n := len(letters(t, db)); n != 1 {
			t.Errorf("%s: %d dead letters, want 1", name, n)
		}
	}
}

// What is the handler's own doing must count, or the message would come back for
// ever; what is not must not, or an outage would make dead letters.
func TestWhatCounts(t *testing.T) {
	t.Parallel()
	type handler = func(ctx context.Context, tx oncemill.Tx, db *sql.DB) error
	terminate := func(ctx context.Context, tx oncemill.Tx, db *sql.DB) error {
		var pid int
		if err := tx.QueryRowContext(ctx, `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
			return err
		}
		_, err := db.ExecContext(ctx, `SELECT pg_terminate_backend($1, 10000)`, pid)
		return err
	}
	for name, test := range map[string]struct {
		counts bool
		run    handler
	}{
		"a statement's own timeout": {true, func(ctx context.Context, tx oncemill.Tx, _ *sql.DB) error {
			ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
			defer cancel()
			_, err := tx.ExecContext(ctx, `SELECT pg_sleep(10)`)
			return err
		}},
		"silent for longer than IdleTimeout": {true, func(ctx context.Context, tx oncemill.Tx, db *sql.DB) error {
			var pid int
			must(t, tx.QueryRowContext(ctx, `SELECT pg_backend_pid()`).Scan(&pid))
			for n := 1; n > 0; { // until Postgres has ended the session
				must(t, db.QueryRowContext(ctx, `SELECT count(*) FROM pg_stat_activity WHERE pid = $1`, pid).Scan(&n))
			}
			return errors.New("business")
		}},
		"a trigger's exception at COMMIT": {true, func(ctx context.Context, tx oncemill.Tx, _ *sql.DB) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO checked VALUES (1)`)
			return err
		}},
		"its own error after a savepoint": {true, func(ctx context.Context, tx oncemill.Tx, _ *sql.DB) error {
			_, err := tx.ExecContext(ctx, `SAVEPOINT s`)
			must(t, err)
			_, err = tx.ExecContext(ctx, `DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '08001'; END $$`)
			if err == nil {
				t.Error("no error")
			}
			_, err = tx.ExecContext(ctx, `ROLLBACK TO s`)
			must(t, err)
			return errors.New("business")
		}},
		"a panic over a lost connection": {false, func(ctx context.Context, tx oncemill.Tx, db *sql.DB) error {
			must(t, terminate(ctx, tx, db))
			if _, err := tx.ExecContext(ctx, `SELECT 1`); err != nil {
				panic(err)
			}
			return nil
		}},
		"a deadlock that the handler hides": {false, func(ctx context.Context, tx oncemill.Tx, _ *sql.DB) error {
			_, err := tx.ExecContext(ctx, `DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40P01'; END $$`)
			return fmt.Errorf("cannot pay: %v", err)
		}},
		"a deadlock that the handler swallows": {false, func(ctx context.Context, tx oncemill.Tx, _ *sql.DB) error {
			_, _ = tx.ExecContext(ctx, `DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40P01'; END $$`)
			return nil
		}},
		"a lost connection that the handler hides": {false, func(ctx context.Context, tx oncemill.Tx, db *sql.DB) error {
			must(t, terminate(ctx, tx, db))
			_, err := tx.ExecContext(ctx, `SELECT 1`)
			return fmt.Errorf("cannot pay: %v", err)
		}},
	} {
		for _, driver := range []string{"postgres", "pgx"} {
			t.Run(name+" "+driver, func(t *testing.T) {
				t.Parallel()
				url := testenv.PostgresURL(t)
				db, err := sql.Open(driver, url)
				must(t, err)
				t.Cleanup(func() { db.Close() })
				_, err = db.Exec(`CREATE TABLE checked (n int);
					CREATE FUNCTION check_late() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''late''; END';
					CREATE CONSTRAINT TRIGGER late AFTER INSERT ON checked DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_late()`)
				must(t, err)
				inbox := &oncemill.Inbox{DB: db, IdleTimeout: 500 * time.Millisecond}
				w := newWorker(t, consumers.Stack{Once: middleware.Once{Inbox: inbox}}, func(msg *message.Message) error {
					tx, _ := oncemill.TxFromContext(msg.Context())
					return test.run(msg.Context(), tx, db)
				})
				if w.deliver(message.NewMessage("u", nil), delivery.Info{}) {
					t.Error("acked")
				}
				if counted := count(t, db, `SELECT count(*) FROM oncemill.handler_errors`) > 0; counted != test.counts {
					t.Errorf("counted: %v, want %v", counted, test.counts)
				}
			})
		}
	}
}

func TestALetterThatFailsIsNotBuriedAgain(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	stack := consumers.Stack{Once: middleware.Once{Inbox: &oncemill.Inbox{DB: db}}, MaxErrors: 1, DeadLetterTopic: "orders"}
	w := newWorker(t, stack, func(*message.Message) error { return errors.New("no") })
	if w.deliver(message.NewMessage("u", nil), delivery.Info{}) {
		t.Error("acked")
	}
	if n := count(t, db, `SELECT count(*) FROM oncemill.outbox`); n != 0 {
		t.Error("it would come back for ever")
	}
}

// The test that takes Postgres away is in the module testcontainers.
func TestTheSubscriberIsHeldWhilePostgresIsAway(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	inbox := &oncemill.Inbox{DB: db}
	w := newWorker(t, consumers.Stack{Once: middleware.Once{Inbox: inbox}, MaxErrors: 1}, func(*message.Message) error {
		return oncemill.ErrUnavailable
	})
	probes := make(chan func(context.Context) error, 1)
	info := delivery.Info{Hold: func(probe func(context.Context) error) { probes <- probe }}
	if w.deliver(message.NewMessage("u", nil), info) {
		t.Error("acked")
	}
	probe := <-probes
	must(t, probe(within(t)))
	_, err := db.Exec(`DROP TABLE oncemill.schema_version`)
	must(t, err)
	if err := probe(within(t)); !errors.Is(err, oncemill.ErrSchema) {
		t.Errorf("got %v", err)
	}
}

func TestTheSubscriberIsHeldWhileTheTablesAreMissing(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	w := newWorker(t, consumers.Stack{Once: middleware.Once{Inbox: &oncemill.Inbox{DB: db}}}, effect)
	_, err := db.Exec(`ALTER TABLE oncemill.claims RENAME TO away`)
	must(t, err)
	held := make(chan struct{}, 1)
	info := delivery.Info{Hold: func(func(context.Context) error) { held <- struct{}{} }}
	if w.deliver(message.NewMessage("u", nil), info) {
		t.Error("acked")
	}
	<-held
	_, err = db.Exec(`ALTER TABLE oncemill.away RENAME TO claims`)
	must(t, err)
	if !w.deliver(message.NewMessage("u", nil), info) {
		t.Error("not acked")
	}
}

func TestAReusedKeyIsBuriedAlsoWhenDeliveredTooOften(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	once := middleware.Once{Inbox: &oncemill.Inbox{DB: db}, Fingerprint: middleware.PayloadFingerprint}
	w := newWorker(t, consumers.Stack{Once: once, MaxDeliveries: 5}, effect)
	if !w.deliver(message.NewMessage("u", []byte("one")), delivery.Info{Attempt: 1}) {
		t.Error("not acked")
	}
	for range 2 {
		if !w.deliver(message.NewMessage("u", []byte("two")), delivery.Info{Attempt: 6}) {
			t.Error("not acked")
		}
	}
	if n := len(letters(t, db)); n != 1 {
		t.Errorf("%d dead letters, want 1", n)
	}
}

func TestWrongConfigurationFailsAtStart(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	router, err := message.NewRouter(message.RouterConfig{}, nil)
	must(t, err)
	once := middleware.Once{Inbox: &oncemill.Inbox{DB: db}}
	for want, stack := range map[string]consumers.Stack{
		"Stack.Once.Inbox is nil": {},
		"Stack.MaxErrors is -2":   {Once: once, MaxErrors: -2},
		"Stack.MaxDeliveries":     {Once: once, MaxDeliveries: -2},
		"Inbox.LockWait is -1ns":  {Once: middleware.Once{Inbox: &oncemill.Inbox{DB: db, LockWait: -1}}},
		"oncemill migrate":        {Once: middleware.Once{Inbox: &oncemill.Inbox{DB: db, Schema: "absent"}}},
	} {
		if err := stack.Apply(within(t), router); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// A role that may claim, and nothing else, does not come to its first error.
func TestAStackNamesTheGrantsThatItsRoleLacks(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "options of the connection string")
	url := testenv.PostgresURL(t)
	admin := testenv.Open(t, url)
	run := func(query string) {
		t.Helper()
		_, err := admin.Exec(query)
		must(t, err)
	}
	role := testenv.Role(t, admin)
	run(`GRANT USAGE ON SCHEMA oncemill TO ` + role + `; GRANT SELECT ON oncemill.schema_version TO ` + role)
	inbox := &oncemill.Inbox{DB: testenv.OpenAs(t, url, role)}
	for _, step := range []struct {
		stack       consumers.Stack
		lacks, then string
	}{
		{consumers.Stack{Once: middleware.Once{Inbox: inbox}}, `may not claim keys (GRANT SELECT, INSERT ON oncemill.claims TO "ROLE";`, `GRANT SELECT, INSERT ON oncemill.claims TO ROLE; GRANT SELECT ON oncemill.watermarks TO ROLE`},
		{consumers.Stack{Once: middleware.Once{Inbox: inbox}}, `may not handle messages (GRANT SELECT, INSERT, UPDATE, DELETE ON oncemill.handler_errors TO "ROLE"; GRANT INSERT ON oncemill.events TO "ROLE")`,
			`GRANT SELECT, INSERT, UPDATE, DELETE ON oncemill.handler_errors TO ROLE; GRANT INSERT ON oncemill.events TO ROLE`},
		{consumers.Stack{Once: middleware.Once{Inbox: inbox}}, `may not publish dead letters (GRANT INSERT ON oncemill.outbox TO "ROLE")`, `GRANT INSERT ON oncemill.outbox TO ROLE`},
		{consumers.Stack{Once: middleware.Once{Inbox: inbox}}, "", ""},
		{consumers.Stack{Guard: &middleware.Guard{Inbox: inbox}}, `(GRANT UPDATE, DELETE ON oncemill.claims TO "ROLE"; GRANT USAGE ON SEQUENCE oncemill.tokens TO "ROLE"; GRANT SELECT, INSERT, DELETE ON oncemill.parked TO "ROLE")`,
			`GRANT UPDATE, DELETE ON oncemill.claims TO ROLE; GRANT USAGE ON SEQUENCE oncemill.tokens TO ROLE; GRANT SELECT, INSERT, DELETE ON oncemill.parked TO ROLE`},
		{consumers.Stack{Guard: &middleware.Guard{Inbox: inbox}}, "", ""},
	} {
		router, err := message.NewRouter(message.RouterConfig{}, nil)
		must(t, err)
		err = step.stack.Apply(within(t), router)
		if want := strings.ReplaceAll(step.lacks, "ROLE", role); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("got %v, want %q", err, want)
		}
		run(strings.ReplaceAll(step.then, "ROLE", role))
	}
}

func TestTheOutboxOfTheStack(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	own := &outbox.Publisher{}
	once := middleware.Once{Inbox: &oncemill.Inbox{DB: db}, Outbox: own}
	if once.Publisher() != own {
		t.Error("Once does not use the Outbox it is given")
	}
}
