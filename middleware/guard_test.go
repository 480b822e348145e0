package middleware_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
)

// guarded runs one delivery through a Guard, as a router would.
type guarded struct {
	*fixture
	handler func(msg *message.Message, claim *oncemill.Claim) ([]*message.Message, error)
	guard   middleware.Guard
}

func newGuarded(t *testing.T) *guarded {
	f := newFixture(t)
	return &guarded{fixture: f, guard: middleware.Guard{Inbox: f.inbox, Consumer: "test"}}
}

func (g *guarded) deliver(uuid string) error {
	g.t.Helper()
	msg := newMessage(g.t, uuid)
	msg.Metadata.Set("m", "v\x00")
	msg.Metadata.Set(outbox.OrderingKeyMetadata, "o")
	msg.SetContext(publishTo(g.t, msg, "receipts"))
	_, err := g.guard.Middleware(func(msg *message.Message) ([]*message.Message, error) {
		claim, ok := oncemill.ClaimFromContext(msg.Context())
		if !ok {
			return nil, oncemill.ErrNoClaim
		}
		return g.handler(msg, claim)
	})(msg)
	return err
}

func (g *guarded) exec(query string) {
	g.t.Helper()
	_, err := g.db.Exec(query)
	must(g.t, err)
}

func (g *guarded) wantClaims(outcome string, n int) {
	g.t.Helper()
	g.want(`SELECT count(*) FROM oncemill.claims WHERE COALESCE(outcome, 'unsettled') = '`+outcome+`'`, n)
}

var errLost = errors.New("reply lost")

func TestGuardSettlesWithRowsAndMessages(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	runs := 0
	g.handler = func(_ *message.Message, claim *oncemill.Claim) ([]*message.Message, error) {
		runs++
		claim.SetResult([]byte("receipt"))
		claim.OnSettle(func(ctx context.Context, tx oncemill.Tx) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO effects VALUES ('row')`)
			return err
		})
		return []*message.Message{message.NewMessage("out", nil)}, nil
	}
	for range 3 {
		must(t, g.deliver("u"))
	}
	if runs != 1 {
		t.Errorf("ran %d times", runs)
	}
	g.wantEffects(1)
	g.want(`SELECT count(*) FROM oncemill.outbox WHERE topic = 'receipts'`, 1)
	g.want(`SELECT count(*) FROM oncemill.claims WHERE outcome = 'settled' AND result = 'receipt'`, 1)
}

func TestGuardReleasesWhatDidNotHappen(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	refusal := errors.New("connection refused")
	g.handler = func(*message.Message, *oncemill.Claim) ([]*message.Message, error) {
		return nil, oncemill.DidNotHappen(refusal)
	}
	err := g.deliver("u")
	want(t, err, refusal)
	if !oncemill.IsHandlerError(err) {
		t.Errorf("%v does not count towards a dead letter", err)
	}
	g.want(`SELECT count(*) FROM oncemill.claims`, 0)
}

func TestGuardFailsWhatNeverWillHappen(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	g.handler = func(*message.Message, *oncemill.Claim) ([]*message.Message, error) {
		return []*message.Message{message.NewMessage("declined", nil)}, oncemill.NeverWill(errors.New("declined"))
	}
	for range 2 {
		must(t, g.deliver("u"))
	}
	g.want(`SELECT count(*) FROM oncemill.claims WHERE outcome = 'failed' AND reason = 'declined'`, 1)
	g.want(`SELECT count(*) FROM oncemill.outbox WHERE uuid = 'declined'`, 1)
}

func TestGuardParksAnOpaqueEffectInDoubt(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func() error{
		"error": func() error { return errLost },
		"panic": func() error { panic("half way") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGuarded(t)
			runs := 0
			g.handler = func(*message.Message, *oncemill.Claim) ([]*message.Message, error) {
				runs++
				return nil, fail()
			}
			for range 3 {
				must(t, g.deliver("u"))
			}
			if runs != 1 {
				t.Errorf("ran %d times", runs)
			}
			g.wantClaims("unsettled", 1)
			doubts, err := g.inbox.InDoubt(context.Background(), "test", oncemill.InDoubt{}, 10)
			must(t, err)
			if len(doubts) != 1 || doubts[0].Message == nil || doubts[0].Message.Metadata["m"] != "v\x00" {
				t.Fatalf("got %+v", doubts)
			}
			must(t, g.inbox.Consumer("test").Resolve(context.Background(), "u", doubts[0].Token, oncemill.NotHappened, "looked"))
			g.want(`SELECT count(*) FROM oncemill.outbox WHERE topic = 'in' AND uuid = 'u' AND ordering_key = 'o' AND payload LIKE '%order%'`, 1)
			g.want(`SELECT count(*) FROM oncemill.parked`, 0)
			g.want(`SELECT count(*) FROM oncemill.claims`, 0)
		})
	}
}

// A process that died in the effect has left a claim, and the message comes again.
func TestGuardParksWhatADeadProcessLeft(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	dead, err := g.inbox.Consumer("test").Claim(context.Background(), "u", oncemill.ClaimOptions{})
	must(t, err)
	g.handler = func(*message.Message, *oncemill.Claim) ([]*message.Message, error) {
		t.Error("ran")
		return nil, nil
	}
	want(t, g.deliver("u"), oncemill.ErrInFlight)
	g.exec(`UPDATE oncemill.claims SET lease_until = clock_timestamp()`)
	must(t, g.deliver("u"))
	g.want(`SELECT count(*) FROM oncemill.parked`, 1)
	must(t, dead.Settle(context.Background(), nil, nil)) // it was only slow
	g.want(`SELECT count(*) FROM oncemill.parked`, 0)
	must(t, g.deliver("u"))
}

func TestGuardRunsAnIdempotentEffectAgainWithTheSameKey(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	g.guard.KeyLifetime = time.Hour
	var keys []string
	g.handler = func(_ *message.Message, claim *oncemill.Claim) ([]*message.Message, error) {
		if keys = append(keys, claim.ProviderKey()); len(keys) < 3 {
			return nil, errLost
		}
		return nil, nil
	}
	for range 2 {
		err := g.deliver("u")
		want(t, err, errLost)
		if oncemill.IsHandlerError(err) {
			t.Errorf("%v counts towards a dead letter", err)
		}
	}
	must(t, g.deliver("u"))
	if keys[0] != keys[1] || keys[1] != keys[2] {
		t.Errorf("provider keys %q", keys)
	}
	g.wantClaims("settled", 1)
}

func TestGuardParksWhenTheKeyLifetimeHasPassed(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	g.guard.KeyLifetime = time.Hour
	runs := 0
	g.handler = func(*message.Message, *oncemill.Claim) ([]*message.Message, error) { runs++; return nil, errLost }
	want(t, g.deliver("u"), errLost)
	g.exec(`UPDATE oncemill.claims SET claimed_at = clock_timestamp() - interval '1 hour'`)
	must(t, g.deliver("u"))
	if runs != 1 {
		t.Errorf("ran %d times", runs)
	}
	g.want(`SELECT count(*) FROM oncemill.parked`, 1)
}

func TestGuardsResolverPutsTheMessageBack(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	asked := make(chan oncemill.InDoubt)
	g.guard.LandingBound, g.guard.Backoff = time.Nanosecond, time.Millisecond
	g.guard.Ask = func(ctx context.Context, d oncemill.InDoubt) (oncemill.Resolution, error) {
		asked <- d
		return oncemill.Resolution{Verdict: oncemill.NotHappened, Note: "not found"}, nil
	}
	key := ""
	g.handler = func(_ *message.Message, claim *oncemill.Claim) ([]*message.Message, error) {
		key = claim.ProviderKey()
		return nil, errLost
	}
	must(t, g.deliver("u"))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- g.guard.Resolver().Run(ctx) }()
	if d := <-asked; d.Key != "u" || d.ProviderKey() != key || d.Message == nil {
		t.Errorf("got %+v", d)
	}
	cancel()
	must(t, <-done)
	g.want(`SELECT count(*) FROM oncemill.outbox WHERE topic = 'in' AND uuid = 'u'`, 1)
	g.want(`SELECT count(*) FROM oncemill.claims`, 0)
}

// The effect is there, but what belongs to it cannot be written.
func TestGuardDoubtsWhatCannotBeSettled(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	g.handler = func(_ *message.Message, claim *oncemill.Claim) ([]*message.Message, error) {
		claim.OnSettle(func(ctx context.Context, tx oncemill.Tx) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO no_such_table VALUES (1)`)
			return err
		})
		return nil, nil
	}
	must(t, g.deliver("u"))
	g.want(`SELECT count(*) FROM oncemill.claims WHERE in_doubt_since IS NOT NULL AND reason LIKE '%the effect happened%no_such_table%'`, 1)
	g.want(`SELECT count(*) FROM oncemill.parked`, 1)
}

func TestGuardSettlesWithoutAResultThatIsTooLarge(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	g.handler = func(_ *message.Message, claim *oncemill.Claim) ([]*message.Message, error) {
		claim.SetResult(make([]byte, oncemill.MostResult+1))
		return nil, nil
	}
	must(t, g.deliver("u"))
	g.wantClaims("settled", 1)
}

func TestAGuardThatCannotWorkIsRefusedAtWiring(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ask := func(context.Context, oncemill.InDoubt) (oncemill.Resolution, error) {
		return oncemill.Resolution{}, nil
	}
	for says, guard := range map[string]middleware.Guard{
		"Guard.Inbox is nil":          {},
		"Guard.Timeout is 30s":        {Inbox: f.inbox, Lease: 30 * time.Second, Timeout: 30 * time.Second},
		"Guard.Lease":                 {Inbox: f.inbox, Lease: time.Millisecond},
		"Guard.KeyLifetime is 10s":    {Inbox: f.inbox, KeyLifetime: 10 * time.Second},
		"longer than two leases":      {Inbox: f.inbox, Lease: time.Minute, KeyLifetime: 90 * time.Second},
		"Guard.Consumer is empty":     {Inbox: f.inbox, Ask: ask},
		"need Ask":                    {Inbox: f.inbox, LandingBound: 1},
		"Guard.Deadline is -1ns":      {Inbox: f.inbox, Deadline: -1},
		"oncemill: Inbox.DB is nil: ": {Inbox: new(oncemill.Inbox)},
	} {
		func() {
			defer func() {
				if text, _ := recover().(string); !strings.Contains(text, says) {
					t.Errorf("panicked with %q, want %q", text, says)
				}
			}()
			guard.Middleware(handler)
		}()
	}
	_, err := middleware.Guard{Inbox: f.inbox, Consumer: "test"}.Middleware(handler)(newMessage(t, "u"))
	want(t, err, middleware.ErrNoParking)
}

// A router that closes cancels its messages; an effect that has begun may end.
func TestAnEffectOutlivesItsRouter(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	router, err := message.NewRouter(message.RouterConfig{}, nil)
	must(t, err)
	channel := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, nil)
	began, end := make(chan struct{}), make(chan struct{})
	contexts := make(chan context.Context, 1)
	router.AddMiddleware(func(h message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			contexts <- msg.Context()
			return h(msg)
		}
	}, g.guard.Middleware)
	router.AddConsumerHandler("handler", "in", channel, func(msg *message.Message) error {
		close(began)
		<-end
		return msg.Context().Err()
	})
	done := make(chan error)
	go func() { done <- router.Run(context.Background()) }()
	must(t, channel.Publish("in", message.NewMessage("u", nil)))
	<-began
	go func() { done <- router.Close() }()
	<-(<-contexts).Done()
	close(end)
	must(t, <-done)
	must(t, <-done)
	g.wantClaims("settled", 1)
}

// A refused connection proves nothing about the attempt before.
func TestGuardDoesNotReleaseWhatAnEarlierAttemptMayHaveDone(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	g.guard.KeyLifetime = time.Hour
	runs := 0
	g.handler = func(_ *message.Message, claim *oncemill.Claim) ([]*message.Message, error) {
		if runs++; runs == 1 {
			return nil, errLost
		}
		return nil, oncemill.DidNotHappen(errors.New("connection refused"))
	}
	want(t, g.deliver("u"), errLost)
	err := g.deliver("u")
	want(t, err, oncemill.ErrInDoubt)
	if oncemill.IsHandlerError(err) {
		t.Errorf("%v counts towards a dead letter", err)
	}
	g.want(`SELECT count(*) FROM oncemill.claims WHERE attempts = 2 AND in_doubt_since IS NOT NULL`, 1)
}

// With both policies, the message of an effect that a resolver asks about comes again,
// and is not parked.
func TestGuardComesAgainWhileTheResolverAsks(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	asked, answer := make(chan struct{}), make(chan struct{})
	g.guard.KeyLifetime, g.guard.Backoff = time.Hour, time.Hour
	g.guard.Ask = func(context.Context, oncemill.InDoubt) (oncemill.Resolution, error) {
		close(asked)
		<-answer
		return oncemill.Resolution{}, nil
	}
	runs := 0
	g.handler = func(*message.Message, *oncemill.Claim) ([]*message.Message, error) {
		if runs++; runs == 1 {
			return nil, errLost
		}
		return nil, nil
	}
	want(t, g.deliver("u"), errLost)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- g.guard.Resolver().Run(ctx) }()
	<-asked
	want(t, g.deliver("u"), oncemill.ErrInFlight)
	g.want(`SELECT count(*) FROM oncemill.parked`, 0)
	close(answer)
	for g.deliver("u") != nil { // until the resolver has given its lease back
	}
	cancel()
	must(t, <-done)
	g.wantClaims("settled", 1)
}
