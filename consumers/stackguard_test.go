package consumers_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	wm "github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/internal/delivery"
	"github.com/oncemill/oncemill/middleware"
)

func TestAnEffectThatNeverHappensMakesADeadLetter(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	var runs atomic.Int32
	stack := consumers.Stack{Guard: &middleware.Guard{Inbox: &oncemill.Inbox{DB: db}}, MaxErrors: 3}
	w := newWorker(t, stack, func(*message.Message) error {
		runs.Add(1)
		return oncemill.DidNotHappen(errors.New("connection refused"))
	})
	for i, acked := range []bool{false, false, true, true} {
		if got := w.deliver(message.NewMessage("u", nil), delivery.Info{}); got != acked {
			t.Errorf("delivery %d: acked %v, want %v", i+1, got, acked)
		}
	}
	if runs.Load() != 3 || len(letters(t, db)) != 1 {
		t.Errorf("%d runs and %d dead letters, want 3 and 1", runs.Load(), len(letters(t, db)))
	}
	if n := count(t, db, `SELECT count(*) FROM oncemill.events WHERE kind = 'dead' AND note LIKE '%connection refused%'`); n != 1 {
		t.Errorf("%d events say why, want 1", n)
	}
}

// An effect in doubt may have happened: it must not be given up, however often its
// message is delivered.
func TestAnEffectInDoubtIsNeverADeadLetter(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	var runs atomic.Int32
	stack := consumers.Stack{
		Guard:         &middleware.Guard{Inbox: &oncemill.Inbox{DB: db}, KeyLifetime: time.Hour},
		MaxErrors:     1,
		MaxDeliveries: 1,
	}
	w := newWorker(t, stack, func(*message.Message) error {
		if runs.Add(1) == 4 {
			return nil
		}
		return errors.New("reply lost")
	})
	for i, acked := range []bool{false, false, false, true} {
		if got := w.deliver(message.NewMessage("u", nil), delivery.Info{Attempt: uint64(i + 1)}); got != acked {
			t.Errorf("delivery %d: acked %v, want %v", i+1, got, acked)
		}
	}
	if n := len(letters(t, db)); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

// The subscriber is asked to wait for as long as the other attempt has left.
func TestAClaimHeldByAnotherIsNackedWithADelay(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	inbox := &oncemill.Inbox{DB: db}
	_, err := inbox.Consumer("billing").Claim(within(t), "u", oncemill.ClaimOptions{Lease: 10 * time.Second})
	must(t, err)
	w := newWorker(t, consumers.Stack{Guard: &middleware.Guard{Inbox: inbox}}, func(*message.Message) error {
		t.Error("ran")
		return nil
	})
	info := delivery.Info{Delay: new(delivery.Delay)}
	if w.deliver(message.NewMessage("u", nil), info) {
		t.Error("acked")
	}
	delay := delivery.DelayAfter(delivery.With(context.Background(), info), 0)
	if delay <= 0 || delay > 10*time.Second {
		t.Errorf("delay %v, want what is left of 10 s", delay)
	}
}

func TestAStackHasOnceOrGuard(t *testing.T) {
	t.Parallel()
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	must(t, err)
	inbox := &oncemill.Inbox{DB: newDB(t)}
	for says, stack := range map[string]consumers.Stack{
		"both set":           {Once: middleware.Once{Inbox: inbox}, Guard: &middleware.Guard{Inbox: inbox}},
		"Once.Inbox is nil":  {},
		"Guard.Inbox is nil": {Guard: &middleware.Guard{}},
		"Guard.Timeout":      {Guard: &middleware.Guard{Inbox: inbox, Timeout: time.Hour}},
	} {
		if err := stack.Apply(within(t), router); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q", err, says)
		}
	}
}

// An outage of the provider is nobody's fault: no message becomes a dead letter for it.
func TestAProviderThatIsAwayDoesNotCountAndPausesTheSubscriber(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	probe := func(context.Context) error { return nil }
	stack := consumers.Stack{Guard: &middleware.Guard{Inbox: &oncemill.Inbox{DB: db}, Probe: probe}, MaxErrors: 1}
	away := true
	w := newWorker(t, stack, func(*message.Message) error {
		if away {
			return oncemill.ProviderAway(errors.New("connection refused"))
		}
		return nil
	})
	holds := 0
	info := delivery.Info{Hold: func(func(context.Context) error) { holds++ }}
	for range 3 {
		if w.deliver(message.NewMessage("u", nil), info) {
			t.Error("acked")
		}
	}
	if away = false; !w.deliver(message.NewMessage("u", nil), info) {
		t.Error("not acked")
	}
	if holds != 3 || len(letters(t, db)) != 0 {
		t.Errorf("%d holds and %d dead letters, want 3 and 0", holds, len(letters(t, db)))
	}
}

func TestAnEffectInDoubtIsNoDeadLetterWhenItCannotBeDescribedAgain(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	var calls atomic.Int32
	stack := consumers.Stack{Guard: &middleware.Guard{
		Inbox: &oncemill.Inbox{DB: db}, KeyLifetime: time.Hour,
		Describe: func(*message.Message, *oncemill.ClaimOptions) error {
			if calls.Add(1) == 2 {
				return context.Canceled // it looks the amount up, and the router closes
			}
			return nil
		},
	}}
	w := newWorker(t, stack, func(*message.Message) error { return errors.New("reply lost") })
	acked := w.deliver(message.NewMessage("u", nil), delivery.Info{Position: "p"})
	if acked || len(letters(t, db)) != 0 {
		t.Errorf("acked %v, %d dead letters of an effect in doubt", acked, len(letters(t, db)))
	}
	if n := count(t, db, `SELECT count(*) FROM oncemill.claims WHERE in_doubt_since IS NOT NULL`); n != 1 {
		t.Error("it is not in doubt")
	}
}

func TestALeaseThatIsOverIsNoOutage(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	inbox := &oncemill.Inbox{DB: db, Lease: 150 * time.Millisecond}
	tx, err := db.Begin()
	must(t, err)
	_, err = tx.Exec(`INSERT INTO oncemill.claims (consumer, key, outcome, fingerprint) VALUES ('billing', 'u', 'settled', NULL)`)
	must(t, err)
	time.AfterFunc(600*time.Millisecond, func() { tx.Rollback() })
	holds := 0
	w := newWorker(t, consumers.Stack{Guard: &middleware.Guard{Inbox: inbox}}, func(*message.Message) error { return nil })
	got := w.deliver(message.NewMessage("u", nil), delivery.Info{Hold: func(func(context.Context) error) { holds++ }})
	if holds != 0 {
		t.Errorf("acked %v; held %d times as if the database were away", got, holds)
	}
}

// A key that is used for two payments: the second is not made, and that never goes
// unnoticed, whoever sends it again and however often.
func TestAMessageUnderAReusedKeyIsNeverDroppedSilently(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	var log bytes.Buffer // read when nothing writes
	var runs atomic.Int32
	stack := consumers.Stack{Guard: &middleware.Guard{
		Inbox: &oncemill.Inbox{DB: db, Logger: slog.New(slog.NewTextHandler(&log, nil))},
		Key:   middleware.ByMetadata("order-id"), Fingerprint: middleware.PayloadFingerprint,
	}}
	w := newWorker(t, stack, func(*message.Message) error {
		runs.Add(1)
		return nil
	})
	send := func(uuid, amount, position string, wantLetters int, logged string) {
		t.Helper()
		log.Reset()
		msg := message.NewMessage(uuid, []byte(amount))
		msg.Metadata.Set("order-id", "fp-1")
		if !w.deliver(msg, delivery.Info{Position: position}) {
			t.Errorf("%s: not acked", uuid)
		}
		if n := len(letters(t, db)); n != wantLetters || !strings.Contains(log.String(), logged) {
			t.Errorf("%s: %d dead letters, want %d; logged %q, want %q", uuid, n, wantLetters, log.String(), logged)
		}
	}
	const gaveUp, again = "gave up a message", "no other dead letter"
	send("a", "100", "1", 0, "")
	send("b", "200", "2", 1, gaveUp)
	send("b", "200", "2", 1, again)  // its ack was lost
	send("b", "200", "3", 1, again)  // sent again as it was
	send("c", "200", "4", 2, gaveUp) // sent again under another UUID, or another message
	send("", "200", "5", 3, gaveUp)
	send("", "200", "5", 3, again)
	send("", "200", "6", 4, gaveUp)
	for _, l := range letters(t, db) {
		if _, has := l[consumers.DeadKey]; has || l[consumers.DeadReused] != "fp-1" || !strings.Contains(l[wm.ReasonForPoisonedKey], "publish it with a key of its own") {
			t.Errorf("a dead letter says %v", l)
		}
	}
	if runs.Load() != 1 {
		t.Errorf("%d effects, want 1", runs.Load())
	}
}
