package middleware_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/internal/delivery"
)

// The router closes between the takeover of a doubtful claim and its handler.
func TestAGuardThatIsClosedDoesNotForgetTheFirstAttempt(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	g.guard.KeyLifetime = 23 * time.Hour
	g.handler = func(*message.Message, *oncemill.Claim) ([]*message.Message, error) { return nil, errLost }
	want(t, g.deliver("u"), errLost)
	g.exec(`UPDATE oncemill.claims SET claimed_at = clock_timestamp() - interval '22 hours'`)

	tx, err := g.db.Begin()
	must(t, err)
	defer tx.Rollback()
	_, err = tx.Exec(`SELECT FROM oncemill.claims FOR UPDATE`)
	must(t, err)
	msg := newMessage(t, "u")
	ctx, cancel := context.WithCancel(publishTo(t, msg, "receipts"))
	msg.SetContext(ctx)
	done := make(chan error, 1)
	go func() {
		_, err := g.guard.Middleware(func(*message.Message) ([]*message.Message, error) {
			t.Error("ran")
			return nil, nil
		})(msg)
		done <- err
	}()
	for n := 0; n == 0; {
		must(t, g.db.QueryRow(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&n))
	}
	cancel() // the router closes
	must(t, tx.Commit())
	want(t, <-done, context.Canceled)
	g.want(`SELECT count(*) FROM oncemill.claims WHERE claimed_at < clock_timestamp() - interval '1 hour'`, 1)
}

// A message that Describe cannot describe has no key, as Describe's documentation says,
// and becomes a dead letter; it must not come for ever.
func TestAMessageThatCannotBeDescribedIsADeadLetter(t *testing.T) {
	t.Parallel()
	for name, describe := range map[string]func(*message.Message, *oncemill.ClaimOptions) error{
		"error":  func(*message.Message, *oncemill.ClaimOptions) error { return errors.New("no amount") },
		"amount": func(_ *message.Message, o *oncemill.ClaimOptions) error { o.Amount = "12,50"; return nil },
		"large": func(_ *message.Message, o *oncemill.ClaimOptions) error {
			o.Payload = make([]byte, oncemill.MostResult+1)
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGuarded(t)
			g.guard.Describe = describe
			router, err := message.NewRouter(message.RouterConfig{}, nil)
			must(t, err)
			must(t, consumers.Stack{Guard: &g.guard, MaxErrors: 2}.Apply(context.Background(), router))
			sub := oneMessage{ch: make(chan *message.Message)}
			router.AddConsumerHandler("handler", "in", sub, func(*message.Message) error { return nil })
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error)
			go func() { done <- router.Run(ctx) }()
			acked := false
			for range 5 {
				msg := newMessage(t, "u")
				msg.SetContext(delivery.With(msg.Context(), delivery.Info{Position: "p"}))
				sub.ch <- msg
				select {
				case <-msg.Acked():
					acked = true
				case <-msg.Nacked():
				}
			}
			close(sub.ch)
			cancel()
			must(t, <-done)
			if !acked {
				t.Error("nacked five times with MaxErrors 2: it comes for ever, and on Kafka nothing behind it")
			}
			g.want(`SELECT count(*) FROM oncemill.outbox WHERE topic = 'dead-letter'`, 1)
		})
	}
}

// "any other error, a panic: nobody knows". So for what OnSettle was given.
func TestAPanicInOnSettleIsInDoubt(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	g.handler = func(_ *message.Message, claim *oncemill.Claim) ([]*message.Message, error) {
		claim.OnSettle(func(context.Context, oncemill.Tx) error { panic("nil map") })
		return nil, nil
	}
	defer func() {
		if p := recover(); p != nil {
			t.Errorf("Guard panicked: %v; a router without Recoverer ends its process", p)
		}
		g.want(`SELECT count(*) FROM oncemill.claims WHERE in_doubt_since IS NOT NULL`, 1)
	}()
	must(t, g.deliver("u"))
}

// A database that is slow must not have each effect end in doubt that was not begun.
func TestAnEffectIsNotBegunWhenItsLeaseIsOver(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	g.db.SetMaxOpenConns(1)
	g.guard.Lease = 500 * time.Millisecond
	g.handler = func(*message.Message, *oncemill.Claim) ([]*message.Message, error) { return nil, nil }
	must(t, g.deliver("warm"))
	conn, err := g.db.Conn(context.Background())
	must(t, err)
	time.AfterFunc(700*time.Millisecond, func() { conn.Close() })
	g.handler = func(msg *message.Message, _ *oncemill.Claim) ([]*message.Message, error) {
		if msg.Context().Err() != nil {
			t.Error("the handler was run though its time was over before it began")
		}
		return nil, msg.Context().Err()
	}
	_ = g.deliver("u")
	g.want(`SELECT count(*) FROM oncemill.parked`, 0)
}

// The message of a subscription to several subjects goes back to its own.
func TestAPatternIsNoTopicToGoBackTo(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	msg := newMessage(t, "u")
	router, err := message.NewRouter(message.RouterConfig{}, nil)
	must(t, err)
	router.AddMiddleware(g.guard.Middleware)
	sub := oneMessage{ch: make(chan *message.Message, 1)}
	sub.ch <- msg
	router.AddConsumerHandler("handler", "orders.*", sub, func(*message.Message) error { return errLost })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- router.Run(ctx) }()
	select {
	case <-msg.Acked():
	case <-msg.Nacked():
	}
	close(sub.ch)
	cancel()
	must(t, <-done)
	g.want(`SELECT count(*) FROM oncemill.parked WHERE topic = 'orders.*'`, 0)
}

// A subscriber that knows the subject behind a pattern has it go back there.
func TestAMessageOfAPatternGoesBackToItsSubject(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	g.handler = func(*message.Message, *oncemill.Claim) ([]*message.Message, error) { return nil, errLost }
	msg := newMessage(t, "u")
	msg.SetContext(delivery.With(publishTo(t, msg, "receipts"), delivery.Info{Topic: "orders.eu"}))
	_, err := g.guard.Middleware(func(*message.Message) ([]*message.Message, error) { return nil, errLost })(msg)
	must(t, err)
	g.want(`SELECT count(*) FROM oncemill.parked WHERE topic = 'orders.eu'`, 1)
}

func TestAHandlerThatNacksAndReturnsNilLeavesItsEffectInDoubt(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	g.handler = func(msg *message.Message, _ *oncemill.Claim) ([]*message.Message, error) {
		msg.Nack()
		return nil, nil
	}
	must(t, g.deliver("u"))
	g.want(`SELECT count(*) FROM oncemill.claims WHERE reason LIKE '%nacked%'`, 1)
}

// A settlement outlives an outage of Postgres that is shorter than the lease.
func TestGuardSettlesAfterAnOutage(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	g.handler = func(msg *message.Message, claim *oncemill.Claim) ([]*message.Message, error) {
		broken := false
		claim.OnSettle(func(ctx context.Context, tx oncemill.Tx) error {
			if !broken {
				broken = true
				_, err := tx.ExecContext(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`)
				return err
			}
			_, err := tx.ExecContext(ctx, `INSERT INTO effects VALUES ('row')`)
			return err
		})
		return nil, nil
	}
	must(t, g.deliver("u"))
	g.wantEffects(1)
	g.wantClaims("settled", 1)
}
