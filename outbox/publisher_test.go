package outbox_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/internal/txn"
	"github.com/oncemill/oncemill/outbox"
)

func TestPublishJoinsTheTransactionInTheContext(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	exec(t, db, `CREATE TABLE orders (id int)`)
	p := new(outbox.Publisher)

	handler := func(result error) error {
		return inTx(t, db, func(ctx context.Context) error {
			tx, _ := txn.From(ctx)
			if _, err := tx.ExecContext(ctx, `INSERT INTO orders VALUES (1)`); err != nil {
				return err
			}
			if err := p.Publish("orders", message.NewMessageWithContext(ctx, "u1", []byte("paid"))); err != nil {
				return err
			}
			if n := rowCount(t, db); n != 0 {
				t.Errorf("%d rows can be seen before the commit", n)
			}
			return result
		})
	}

	failure := errors.New("handler failed")
	if err := handler(failure); err != failure {
		t.Fatal(err)
	}
	if n := rowCount(t, db) + value[int](t, db, `SELECT count(*) FROM orders`); n != 0 {
		t.Fatalf("%d rows after the rollback", n)
	}
	if err := handler(nil); err != nil {
		t.Fatal(err)
	}
	got := value[string](t, db, `SELECT concat_ws(' ', topic, uuid, metadata, convert_from(payload, 'UTF8')) FROM oncemill.outbox`)
	if want := "orders u1 {} paid"; got != want {
		t.Errorf("row is %q, want %q", got, want)
	}
}

func TestPublishWithoutTransaction(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	err := new(outbox.Publisher).Publish("orders", message.NewMessage("u1", nil))
	if !errors.Is(err, outbox.ErrNoTx) {
		t.Fatalf("error is %v, want ErrNoTx", err)
	}
	for _, word := range []string{"message.NewMessageWithContext", "msg.SetContext", `topic="orders"`, `uuid="u1"`} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not name %s", err, word)
		}
	}
	if err := (&outbox.Publisher{DB: db}).Publish("orders", message.NewMessage("u1", nil)); err != nil {
		t.Fatal(err)
	}
	if n := rowCount(t, db); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
}

func TestPublishRefusesMixedTransactions(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	p := &outbox.Publisher{DB: db}
	without := message.NewMessage("without", nil)
	inTx(t, db, func(one context.Context) error {
		return inTx(t, db, func(two context.Context) error {
			in := func(ctx context.Context) *message.Message { return message.NewMessageWithContext(ctx, "in", nil) }
			for name, test := range map[string]struct {
				msgs  []*message.Message
				index int
				noTx  bool
			}{
				"two transactions": {[]*message.Message{in(one), in(two)}, 1, false},
				"first without":    {[]*message.Message{without, in(one)}, 0, true},
				"second without":   {[]*message.Message{in(one), without}, 1, true},
			} {
				err := p.Publish("t", test.msgs...)
				var e *outbox.Error
				if !errors.As(err, &e) || e.Index != test.index || errors.Is(err, outbox.ErrNoTx) != test.noTx {
					t.Errorf("%s: error is %v", name, err)
				}
			}
			return nil
		})
	})
	if n := rowCount(t, db); n != 0 {
		t.Errorf("%d rows, want none", n)
	}
}

func TestPublishAllOrNothing(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	// The second statement of the call fails.
	exec(t, db, `ALTER TABLE oncemill.outbox ADD CHECK (uuid <> 'bad')`)
	msgs := make([]*message.Message, 1500)
	for i := range msgs {
		msgs[i] = message.NewMessage("good", nil)
	}
	msgs[1400].UUID = "bad"
	if err := (&outbox.Publisher{DB: db}).Publish("t", msgs...); err == nil {
		t.Fatal("no error")
	}
	if n := rowCount(t, db); n != 0 {
		t.Errorf("%d rows, want none", n)
	}
}

func TestPublishManyKeepsOrder(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	const n = 70_000 // more than a statement has parameters for
	publish(t, db, "t", n)
	got := value[int](t, db, `SELECT count(*) FROM (SELECT uuid, row_number() OVER (ORDER BY id) - 1 AS i FROM oncemill.outbox) AS o WHERE uuid = 't-' || i`)
	if got != n {
		t.Errorf("%d of %d rows in their place", got, n)
	}
}

func TestPublishAfterClose(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	p := &outbox.Publisher{DB: db}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if err := p.Publish("t", message.NewMessage("", nil)); err != nil {
			t.Fatal(err)
		}
	}
	if n := rowCount(t, db); n != 2 {
		t.Errorf("%d rows, want 2", n)
	}
}

func TestPublishNothing(t *testing.T) {
	t.Parallel()
	if err := new(outbox.Publisher).Publish("t"); err != nil {
		t.Error(err)
	}
}

func TestPublishBadInput(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	for name, test := range map[string]struct {
		topic string
		msg   *message.Message
		names string // what the error must name
	}{
		"empty topic":     {"", message.NewMessage("u", nil), "topic is empty"},
		"topic with NUL":  {"a\x00b", message.NewMessage("u", nil), `topic "a\x00b"`},
		"topic not UTF-8": {"a\xff", message.NewMessage("u", nil), `topic "a\xff"`},
		"nil message":     {"t", nil, "nil"},
		"UUID with NUL":   {"t", message.NewMessage("\x00", nil), `UUID "\x00"`},
		"UUID not UTF-8":  {"t", message.NewMessage("\xff", nil), `UUID "\xff"`},
	} {
		for how, publisher := range map[string]message.Publisher{
			"Publisher": &outbox.Publisher{DB: db},
			"InTx":      outbox.InTx(db),
		} {
			err := publisher.Publish(test.topic, test.msg)
			if !errors.Is(err, outbox.ErrInvalid) || !strings.Contains(err.Error(), test.names) {
				t.Errorf("%s, %s: error is %v, want ErrInvalid naming %s", name, how, err, test.names)
			}
		}
	}
	if n := rowCount(t, db); n != 0 {
		t.Errorf("%d rows, want none", n)
	}
}

func TestInTx(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	otherSchema(t, db, "other")
	p := &outbox.Publisher{Schema: "other"}
	for _, commit := range []bool{false, true} {
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		for _, bound := range []message.Publisher{outbox.InTx(tx), p.InTx(tx)} {
			if err := bound.Publish("t", message.NewMessage("u", nil)); err != nil {
				t.Fatal(err)
			}
			if err := bound.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if commit {
			err = tx.Commit()
		} else {
			err = tx.Rollback()
		}
		if err != nil {
			t.Fatal(err)
		}
		want := map[bool]int{false: 0, true: 1}[commit]
		if n, other := rowCount(t, db), value[int](t, db, `SELECT count(*) FROM other.outbox`); n != want || other != want {
			t.Errorf("commit=%v: %d and %d rows, want %d each", commit, n, other, want)
		}
	}
}

// A message's context ends with its acknowledgement and when the router closes.
// The transaction it publishes into must not break by that.
func TestPublishWithEndedContextDoesNotBreakTheTransaction(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	err := inTx(t, db, func(ctx context.Context) error {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		return new(outbox.Publisher).Publish("t", message.NewMessageWithContext(ctx, "u", nil))
	})
	if err != nil || rowCount(t, db) != 1 {
		t.Errorf("error %v, %d rows", err, rowCount(t, db))
	}
}

// Without a transaction in it, an ended context means that nobody wants the
// message any more.
func TestPublishAloneWithEndedContext(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := (&outbox.Publisher{DB: db}).Publish("t", message.NewMessageWithContext(ctx, "u", nil))
	if !errors.Is(err, context.Canceled) || rowCount(t, db) != 0 {
		t.Errorf("error %v, %d rows", err, rowCount(t, db))
	}
}

func TestPublishIntoMissingSchema(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	err := (&outbox.Publisher{DB: db, Schema: "nowhere"}).Publish("t", message.NewMessage("u", nil))
	if err == nil || !strings.Contains(err.Error(), "nowhere.outbox") {
		t.Errorf("error is %v, want one that names the table", err)
	}
}
