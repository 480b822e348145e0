package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

// later is a message that is to be sent after a while.
func later(ctx context.Context, uuid string, wait time.Duration) *message.Message {
	msg := message.NewMessageWithContext(ctx, uuid, []byte(uuid))
	outbox.DeliverIn(msg, wait)
	return msg
}

func scheduledCount(t *testing.T, db *sql.DB) int {
	t.Helper()
	return value[int](t, db, `SELECT count(*) FROM oncemill.scheduled`)
}

func TestScheduledMessagesAreWrittenWithTheTransaction(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	eachDriver(t, func(t *testing.T, db *sql.DB, _ string) {
		at := time.Date(2099, 12, 24, 18, 0, 0, 123_456_789, time.FixedZone("", 3600))
		publish := func(ctx context.Context, p message.Publisher) error {
			now, in, on := keyed(ctx, []byte("k\x00"), nil), keyed(ctx, []byte("k\x00"), nil), keyed(ctx, nil, []byte("p\xff"))
			outbox.DeliverIn(in, 36*time.Hour+time.Millisecond)
			outbox.DeliverAt(on, at)
			on.Metadata.Set("a", "b")
			return p.Publish("t", now, in, on)
		}
		failure := errors.New("handler failed")
		err := inTx(t, db, func(ctx context.Context) error {
			return errors.Join(publish(ctx, new(outbox.Publisher)), failure)
		})
		if n := scheduledCount(t, db) + rowCount(t, db); !errors.Is(err, failure) || n != 0 {
			t.Fatalf("%d rows after the rollback, %v", n, err)
		}
		must(t, inTx(t, db, func(ctx context.Context) error { return publish(ctx, new(outbox.Publisher)) }))
		must(t, publish(t.Context(), &outbox.Publisher{DB: db}))
		tx, err := db.Begin()
		must(t, err)
		defer tx.Rollback()
		must(t, publish(t.Context(), outbox.InTx(tx)))
		must(t, tx.Commit())
		if n := rowCount(t, db); n != 3 {
			t.Errorf("%d rows in the outbox, want 3", n)
		}
		for where, want := range map[string]int{
			`deliver_after = created_at + interval '36 hours 1 millisecond' AND ordering_key = '\x6b00' AND payload IS NULL AND metadata = '{}'`:        3,
			`deliver_after = '2099-12-24T17:00:00.123457Z' AND ordering_key IS NULL AND payload = '\x70ff' AND metadata = '{"a": "b"}' AND topic = 't'`: 3,
		} {
			if n := value[int](t, db, `SELECT count(*) FROM oncemill.scheduled WHERE `+where); n != want {
				t.Errorf("%d rows with %s, want %d", n, where, want)
			}
		}
	})
}

// In a batch several members share a transaction, and what each schedules is written at
// its end.
func TestMembersOfABatchCanSchedule(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	db := testenv.DB(t)
	in := &oncemill.Inbox{DB: db, Batch: 16}
	p := new(outbox.Publisher)
	const members = 16
	errs := make(chan error, members)
	for i := range members {
		go func() {
			errs <- in.Consumer("c").Once(context.Background(), fmt.Sprint(i), func(ctx context.Context, _ oncemill.Tx) error {
				return p.Publish("t", message.NewMessageWithContext(ctx, "now", nil), later(ctx, "later", time.Hour))
			})
		}()
	}
	for range members {
		must(t, receive(t, errs))
	}
	if now, due := rowCount(t, db), scheduledCount(t, db); now != members || due != members {
		t.Errorf("%d rows in the outbox and %d scheduled, want %d each", now, due, members)
	}
}

func TestAWrongTimeToDeliverIsRefused(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	db := testenv.DB(t)
	for _, wrong := range []string{"", "tomorrow", "90", "-", "2026-12-24", "2026-12-24T18:00:00", "0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "9999-12-31T23:59:59-01:00"} {
		msg := message.NewMessage("u", nil)
		msg.Metadata.Set(outbox.DeliverAfterMetadata, wrong)
		err := (&outbox.Publisher{DB: db}).Publish("t", msg)
		var e *outbox.Error
		if !errors.Is(err, outbox.ErrInvalid) || !errors.As(err, &e) || e.UUID != "u" || !strings.Contains(err.Error(), "oncemill-deliver-after") || !strings.Contains(err.Error(), "outbox.DeliverIn") {
			t.Errorf("%q: error is %v", wrong, err)
		}
	}
	if n := rowCount(t, db) + scheduledCount(t, db); n != 0 {
		t.Errorf("%d rows", n)
	}
}

// toVersion5 takes a database back to the schema of the release before.
func toVersion5(t *testing.T, db *sql.DB) {
	t.Helper()
	exec(t, db, `DROP TABLE oncemill.published; DROP TABLE oncemill.scheduled;
		DROP INDEX oncemill.outbox_parked; DROP INDEX oncemill.outbox_held; DROP INDEX oncemill.outbox_keyed;
		DELETE FROM oncemill.schema_version WHERE version = 6`)
}

func TestOnSchema5NothingCanBeScheduledAndAllElseWorks(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "a log without a word, where sessions of a pooler come and go")
	testenv.NeedsSchema(t, 6)
	eachDriver(t, func(t *testing.T, db *sql.DB, _ string) {
		toVersion5(t, db)
		p := &outbox.Publisher{DB: db}
		wantErr := func(err error) {
			t.Helper()
			if !errors.Is(err, outbox.ErrSchema) || !strings.Contains(err.Error(), "schema version 6") || !strings.Contains(err.Error(), "oncemill migrate") {
				t.Errorf("error is %v", err)
			}
		}
		wantErr(p.Publish("t", later(t.Context(), "u", time.Hour)))
		tx, err := db.Begin()
		must(t, err)
		defer tx.Rollback()
		_, err = outbox.Cancel(t.Context(), tx, "", "u")
		wantErr(err)
		must(t, p.Publish("t", message.NewMessage("now", nil)))
		logger, logged := hearLog()
		sink := newRecorder(nil)
		start(t, &outbox.Relay{DB: db, Sink: sink, Logger: logger})
		if row := sink.next(t); row.UUID != "now" {
			t.Errorf("row is %+v", row)
		}
		if strings.Contains(logged(), "WARN") {
			t.Errorf("log:\n%s", logged())
		}
	})
}

func TestCancelTakesBackWhatIsNotDue(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	eachDriver(t, func(t *testing.T, db *sql.DB, _ string) {
		p := &outbox.Publisher{DB: db}
		must(t, p.Publish("a", later(t.Context(), "u", time.Hour), later(t.Context(), "u", 2*time.Hour), later(t.Context(), "other", time.Hour)))
		must(t, p.Publish("b", later(t.Context(), "u", time.Hour)))
		cancel := func(topic, uuid string, want int64) {
			t.Helper()
			must(t, inTx(t, db, func(ctx context.Context) error {
				tx, err := db.Begin()
				if err != nil {
					return err
				}
				defer tx.Rollback()
				if n, err := outbox.Cancel(ctx, tx, topic, uuid); err != nil || n != want {
					t.Errorf("cancelled %d (%v), want %d", n, err, want)
				}
				return tx.Commit()
			}))
		}
		cancel("c", "u", 0)
		cancel("a", "u", 2)
		cancel("", "u", 1)
		cancel("", "u", 0)
		if got := value[string](t, db, `SELECT string_agg(topic || ' ' || uuid, ', ') FROM oncemill.scheduled`); got != "a other" {
			t.Errorf("left is %s", got)
		}
	})
}

// A handler cancels in its own transaction: if that is rolled back, the message is sent.
func TestCancelBelongsToTheHandlersTransaction(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	db := testenv.DB(t)
	otherSchema(t, db, "other")
	p := &outbox.Publisher{DB: db, Schema: "other"}
	must(t, p.Publish("t", later(t.Context(), "u", time.Hour)))
	consumer := (&oncemill.Inbox{DB: db}).Consumer("c")
	failure := errors.New("handler failed")
	for _, result := range []error{failure, nil} {
		err := consumer.Once(t.Context(), "k", func(ctx context.Context, tx oncemill.Tx) error {
			n, err := p.Cancel(ctx, tx, "t", "u")
			if n != 1 {
				t.Errorf("cancelled %d", n)
			}
			return errors.Join(err, result)
		})
		if !errors.Is(err, result) {
			t.Fatal(err)
		}
		left := 1
		if result == nil {
			left = 0
		}
		if n := value[int](t, db, `SELECT count(*) FROM other.scheduled`); n != left {
			t.Errorf("%d rows after %v", n, result)
		}
	}
}
