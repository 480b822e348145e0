package oncemill_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
)

// A timeout longer than what is left of the lease is lost once the lease is extended.
func TestATimeoutInAnEffectSurvivesAnExtension(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := claim(t, f.consumer(), "k", oncemill.ClaimOptions{Lease: time.Second})
	ctx, cancel := c.Context(within(t))
	defer cancel()
	inner, stop := context.WithTimeout(ctx, 1500*time.Millisecond)
	defer stop()
	must(t, c.Extend(within(t), 20*time.Second))
	select {
	case <-inner.Done():
	case <-time.After(4 * time.Second):
		t.Error("a timeout of 1.5 s has not ended after 4 s")
	}
}

func TestAnEffectTellsItsCallersDeadline(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := claim(t, f.consumer(), "k", oncemill.ClaimOptions{Lease: time.Minute})
	parent, stop := context.WithTimeout(within(t), 2*time.Second)
	defer stop()
	ctx, cancel := c.Context(parent)
	defer cancel()
	d, _ := ctx.Deadline()
	if time.Until(d) > 3*time.Second {
		t.Errorf("ends in 2 s, but tells %v", time.Until(d))
	}
}

// A Resolve for an attempt of long ago succeeds although another attempt was resolved.
func TestResolveOfAnEarlierClaimDoesNotSucceed(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	co := f.consumer()
	first := claim(t, co, "k", oncemill.ClaimOptions{})
	f.expire("k")
	must(t, co.Resolve(within(t), "k", first.Token(), oncemill.NotHappened, "asked"))
	second := claim(t, co, "k", oncemill.ClaimOptions{})
	must(t, second.Doubt(within(t), "lost", nil))
	must(t, co.Resolve(within(t), "k", second.Token(), oncemill.Happened, "seen"))
	ran := false
	err := co.ResolveWith(within(t), "k", first.Token(), oncemill.Resolution{Verdict: oncemill.Happened, Settle: func(context.Context, oncemill.Tx) error { ran = true; return nil }})
	if err == nil {
		t.Errorf("resolving token %d, of two generations ago, succeeded; Settle ran: %v", first.Token(), ran)
	}
}

// After the answer was lost, the frozen holder is refused; then the retry fails.
func TestResolveCanBeCalledAgainAfterItsHolderWasRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	co := f.consumer()
	first := claim(t, co, "k", oncemill.ClaimOptions{})
	f.expire("k")
	must(t, co.Resolve(within(t), "k", first.Token(), oncemill.Happened, "asked"))
	want(t, first.Settle(within(t), nil, nil), oncemill.ErrFenced)
	must(t, co.Resolve(within(t), "k", first.Token(), oncemill.Happened, "asked"))
}

type nothing struct{}

func (nothing) Error() string   { return "several" }
func (nothing) Unwrap() []error { return []error{nil} }

func TestNoErrorMeansThatItHappened(t *testing.T) {
	t.Parallel()
	if v := oncemill.VerdictOf(nothing{}); v != oncemill.Unknown {
		t.Errorf("an error is %q", v)
	}
}

// giveBack and unclaim, when the caller is gone and a release hangs on a row lock.
func TestGivingAClaimBackEndsWithItsCaller(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exec(`CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(CASE TG_OP WHEN 'INSERT' THEN 1 ELSE 12 END); RETURN NULL; END $$`)
	f.exec(`CREATE CONSTRAINT TRIGGER slow AFTER INSERT OR DELETE ON oncemill.claims DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()`)
	in := &oncemill.Inbox{DB: f.db, DrainTimeout: 300 * time.Millisecond}
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(200*time.Millisecond, cancel)
	start := time.Now()
	_, err := in.Consumer("test").Claim(ctx, "born-over", oncemill.ClaimOptions{Lease: 500 * time.Millisecond})
	t.Logf("lost: %v after %v", err, time.Since(start))
	// born over its lease; the caller gives up at once
	ctx2, cancel2 := context.WithCancel(context.Background())
	in2 := &oncemill.Inbox{DB: f.db, DrainTimeout: 3 * time.Second}
	time.AfterFunc(1200*time.Millisecond, cancel2)
	start = time.Now()
	_, err = in2.Consumer("test").Claim(ctx2, "k2", oncemill.ClaimOptions{Lease: 500 * time.Millisecond})
	took := time.Since(start)
	if errors.Is(err, oncemill.ErrLeaseOver) && took > 8*time.Second {
		t.Errorf("Claim took %v, %v after its caller had gone, with a DrainTimeout of 3 s: %v", took, took-1200*time.Millisecond, err)
	}
}

func TestOnceInAnEffectEndsWithItsLease(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	co := f.consumer()
	c := claim(t, co, "k", oncemill.ClaimOptions{Lease: 500 * time.Millisecond})
	ctx, cancel := c.Context(within(t))
	defer cancel()
	start := time.Now()
	// a record of its own, with the effect's context, as a handler may write it
	err := co.Once(ctx, "attempt-log", func(ctx context.Context, tx oncemill.Tx) error {
		select {
		case <-ctx.Done():
		case <-time.After(3 * time.Second):
		}
		return ctx.Err()
	})
	t.Logf("once: %v after %v; effect ctx: %v, cause %v", err, time.Since(start), ctx.Err(), context.Cause(ctx))
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Errorf("the effect's deadline passed and Err is %v", ctx.Err())
	}
	if time.Since(start) > 2*time.Second {
		t.Error("Once was not cut off at the effect's deadline")
	}
}

func TestAPanicInSettleKeepsItsError(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	co := f.consumer()
	c := claim(t, co, "k", oncemill.ClaimOptions{})
	boom := errors.New("boom")
	err := c.Settle(within(t), nil, func(context.Context, oncemill.Tx) error { panic(boom) })
	if !errors.Is(err, boom) {
		t.Error("a panic's error is lost")
	}
}

// A resolver's resolution is not the caller's, whose rows it has not written.
func TestResolveDoesNotTakeAResolversWorkForItsOwn(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := f.consumer()
	first := claim(t, c, "k", oncemill.ClaimOptions{})
	must(t, first.Doubt(within(t), "reply lost", nil))
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	token := int64(0)
	r := oncemill.Resolver{Consumer: c, Poll: time.Millisecond, Ask: func(_ context.Context, d oncemill.InDoubt) (oncemill.Resolution, error) {
		token = d.Token
		return oncemill.Resolution{Verdict: oncemill.Happened}, nil
	}}
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	for f.count(`SELECT count(*) FROM oncemill.claims WHERE outcome = 'settled'`) == 0 {
	}
	cancel()
	must(t, <-done)
	for _, t2 := range []int64{first.Token(), token} {
		want(t, c.ResolveWith(within(t), "k", t2, oncemill.Resolution{Verdict: oncemill.Happened, Settle: effect("row")}), oncemill.ErrSettled)
	}
	f.wantEffects("row", 0)
}

// Whoever waited in vain for another transaction with the key was blocked too.
func TestAClaimRefusedAfterLockWaitIsBlocked(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tx, err := f.db.Begin()
	must(t, err)
	defer tx.Rollback()
	_, err = tx.Exec(`INSERT INTO oncemill.claims (consumer, key, outcome) VALUES ('test', 'k', 'settled')`)
	must(t, err)
	in := &oncemill.Inbox{DB: f.db, LockWait: 100 * time.Millisecond}
	_, err = in.Consumer("test").Claim(within(t), "k", oncemill.ClaimOptions{Amount: "452", Currency: "USD"})
	want(t, err, oncemill.ErrInFlight)
	must(t, tx.Commit())
	blocked, err := in.Blocked(within(t), "test", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	must(t, err)
	if len(blocked) != 1 || blocked[0].Claims != 1 || blocked[0].Amount != "452" {
		t.Errorf("blocked %+v, want the 1 claim of 452 USD that was refused", blocked)
	}
}

// The provider would not recognise a request at the end of such an attempt.
func TestAFurtherAttemptIsNotExtendedBeyondTheKeyLifetime(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := f.consumer()
	opts := oncemill.ClaimOptions{Lease: time.Second, KeyLifetime: time.Minute}
	first := claim(t, c, "k", opts)
	must(t, first.Doubt(within(t), "the reply was lost", nil))
	second := claim(t, c, "k", opts)
	must(t, second.Extend(within(t), time.Hour))
	left := time.Until(second.Deadline())
	if left > time.Minute || left < 30*time.Second {
		t.Errorf("attempt 2 may go on for %v, want nearly the minute for which the provider knows the key", left)
	}
	if n := f.count(`SELECT count(*) FROM oncemill.claims WHERE greatest(lease_until, effect_until) <= claimed_at + interval '1 minute'`); n != 1 {
		t.Error("its lease outlives the key")
	}
}

// What is kept ends when its caller is cancelled, also after the first lease.
func TestKeepEndsWithItsCaller(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	in := &oncemill.Inbox{DB: f.db, DrainTimeout: time.Millisecond}
	kept := claim(t, in.Consumer("test"), "k", oncemill.ClaimOptions{Lease: time.Second})
	caller, cancel := context.WithCancel(within(t))
	effect, stop := kept.Context(caller)
	defer stop()
	want(t, kept.Keep(effect, func(ctx context.Context) error {
		if _, ok := ctx.Deadline(); ok {
			t.Error("it has a deadline, which an extension would have to move")
		}
		<-effect.Done()
		want(t, context.Cause(effect), oncemill.ErrLeaseOver)
		must(t, ctx.Err())
		cancel()
		<-ctx.Done()
		return context.Cause(ctx)
	}), oncemill.ErrDrained)
}
