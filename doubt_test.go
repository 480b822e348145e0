package oncemill_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/schema"
)

// waiting returns when n sessions of the database wait for a lock.
func (f *fixture) waiting(n int) {
	f.t.Helper()
	ctx := within(f.t)
	for f.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) < n {
		if ctx.Err() != nil {
			f.t.Fatal("nobody waits for a lock")
		}
	}
}

// A takeover whose COMMIT's answer is lost is undone by deleting the claim, with the
// earlier attempt that is in doubt.
func TestALostTakeoverDoesNotForgetTheFirstAttempt(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	p, url := f.throughProxy()
	db := f.open("postgres", url)
	c := (&oncemill.Inbox{DB: db}).Consumer("test")
	first := claim(t, c, "k", oncemill.ClaimOptions{})
	f.exec(`UPDATE oncemill.claims SET claimed_at = clock_timestamp() - interval '22 hours'`)
	f.expire("k") // it may have had its effect
	p.cutNext("after")
	_, err := c.Claim(within(t), "k", oncemill.ClaimOptions{KeyLifetime: 23 * time.Hour})
	want(t, err, oncemill.ErrUnavailable)
	if n := f.count(`SELECT count(*) FROM oncemill.claims WHERE claimed_at < clock_timestamp() - interval '1 hour'`); n != 1 {
		t.Errorf("the claim of token %d, which is in doubt, was released: the key lifetime begins anew", first.Token())
	}
	db.Close()
}

// A claim's COMMIT that is still under way when the claim is to be released.
func TestAClaimWhoseCallerGaveUpIsReleased(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.slowCommit()
	c := f.consumer()
	ctx, cancel := context.WithTimeout(within(t), 300*time.Millisecond)
	defer cancel()
	_, err := c.Claim(ctx, "k", oncemill.ClaimOptions{})
	want(t, err, context.DeadlineExceeded)
	f.wantReleased("no effect was begun and Claim has failed, but the key is taken and will be in doubt")
}

// The router closes while the claim's COMMIT waits, as it does for a standby.
func TestAClaimOfARouterThatClosesIsReleased(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.slowCommit()
	done := make(chan error, 1)
	in := &oncemill.Inbox{DB: f.db, DrainTimeout: 400 * time.Millisecond}
	ctx, cancel := context.WithCancel(within(t))
	go func() {
		_, err := in.Consumer("test").Claim(ctx, "k", oncemill.ClaimOptions{})
		done <- err
	}()
	for f.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'`) == 0 {
	}
	cancel()
	want(t, <-done, oncemill.ErrDrained)
	f.wantReleased("the router closed while a claim was committed: its effect will be in doubt, though not begun")
}

// The connection breaks while the server is still at the COMMIT.
func TestAClaimWhoseConnectionBrokeInCommitIsReleased(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.slowCommit()
	connector, err := pq.NewConnector(f.url)
	must(t, err)
	breaking := new(breaking)
	connector.Dialer(breaking)
	db := sql.OpenDB(connector)
	defer db.Close()
	c := (&oncemill.Inbox{DB: db}).Consumer("test")
	must(t, claim(t, c, "warm", oncemill.ClaimOptions{}).Release(within(t), ""))
	f.exec(`DELETE FROM oncemill.events`)
	breaking.next.Store(true)
	_, err = c.Claim(within(t), "k", oncemill.ClaimOptions{})
	want(t, err, oncemill.ErrUnavailable)
	f.wantReleased("Claim has failed and had the time to release, but the key is taken and will be in doubt")
}

// breaking dials connections of which one breaks right behind its COMMIT.
type breaking struct{ next atomic.Bool }

func (b *breaking) Dial(network, address string) (net.Conn, error) {
	conn, err := net.Dial(network, address)
	return breakingConn{conn, b}, err
}

func (b *breaking) DialTimeout(network, address string, _ time.Duration) (net.Conn, error) {
	return b.Dial(network, address)
}

type breakingConn struct {
	net.Conn
	b *breaking
}

func (c breakingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if bytes.Contains(p, []byte("COMMIT\x00")) && c.b.next.CompareAndSwap(true, false) {
		c.Close()
	}
	return n, err
}

// wantReleased waits until a claim was committed, and then for its release.
func (f *fixture) wantReleased(otherwise string) {
	f.t.Helper()
	ctx := within(f.t)
	for f.count(`SELECT count(*) FROM oncemill.events WHERE kind = 'claimed' AND key = 'k'`) == 0 {
		if ctx.Err() != nil {
			f.t.Fatal("the claim was not committed")
		}
	}
	for deadline := time.Now().Add(8 * time.Second); f.count(`SELECT count(*) FROM oncemill.claims`) > 0; {
		if time.Now().After(deadline) {
			f.t.Fatal(otherwise)
		}
	}
}

// slowCommit has the COMMIT of each new claim take a while.
func (f *fixture) slowCommit() {
	f.t.Helper()
	f.exec(`CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$`)
	f.exec(`CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON oncemill.claims DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()`)
}

// endSQL deletes from parked in the snapshot from before it waited.
func TestSettlingDeletesWhatWasParkedMeanwhile(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := f.consumer()
	first := claim(t, c, "k", oncemill.ClaimOptions{})
	f.expire("k")
	// Another delivery finds the claim in doubt, and parks, as takeHeld does.
	tx, err := f.db.Begin()
	must(t, err)
	defer tx.Rollback()
	_, err = tx.Exec(`SELECT FROM oncemill.claims WHERE key = 'k' FOR UPDATE`)
	must(t, err)
	_, err = tx.Exec(`UPDATE oncemill.claims SET in_doubt_since = lease_until WHERE key = 'k'`)
	must(t, err)
	_, err = tx.Exec(`INSERT INTO oncemill.parked (consumer, key, topic, uuid, metadata, payload) VALUES ('test', 'k', 't', 'old', '{}', 'p')`)
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- first.Settle(within(t), nil, nil) }()
	f.waiting(1)
	must(t, tx.Commit())
	must(t, <-done)
	if n := f.count(`SELECT count(*) FROM oncemill.parked`); n != 0 {
		t.Errorf("%d parked messages are left of a settled claim, for ever", n)
	}
}

// Whoever comes by an InDoubt otherwise than from Inbox.InDoubt asks for another key.
func TestInDoubtKeepsItsProviderKeyThroughJSON(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	in := &oncemill.Inbox{DB: f.db}
	c := in.Consumer("test")
	first := claim(t, c, "k", oncemill.ClaimOptions{})
	f.expire("k")
	all, err := in.InDoubt(within(t), "", oncemill.InDoubt{}, 1)
	must(t, err)
	text, err := json.Marshal(all[0])
	must(t, err)
	var d oncemill.InDoubt
	must(t, json.Unmarshal(text, &d))
	if d.ProviderKey() != first.ProviderKey() {
		t.Errorf("asks the provider for %s, but the effect was made as %s: NotHappened", d.ProviderKey(), first.ProviderKey())
	}
	if page, err := in.InDoubt(within(t), "", d, 1); err != nil || len(page) != 0 {
		t.Errorf("the page after the last claim has it again: %d, %v", len(page), err)
	}
}

// Libraries for retries join the errors of all attempts.
func TestAnErrorJoinedToAnUnknownOneIsUnknown(t *testing.T) {
	err := errors.Join(errors.New("first try: reply lost"), oncemill.DidNotHappen(errors.New("second try: connection refused")))
	if v := oncemill.VerdictOf(err); v != oncemill.Unknown {
		t.Errorf("%v is %q: the claim is released, though the first try may have had its effect", err, v)
	}
}

// Keep inside of Claim.Context, which is what Guard gives to a handler.
func TestKeepOutlivesTheFirstLeaseUnderAGuard(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "leases that are shorter than a new session of a pooler may take")
	f := newFixture(t)
	kept := claim(t, f.consumer(), "k", oncemill.ClaimOptions{Lease: 2 * time.Second})
	ctx, stop := kept.Context(within(t))
	defer stop()
	must(t, kept.Keep(ctx, func(ctx context.Context) error {
		for f.count(`SELECT count(*) FROM oncemill.events WHERE kind = 'extended'`) < 4 {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			time.Sleep(50 * time.Millisecond)
		}
		return nil
	}))
}

// An effect's context must not outlive its lease, so a lease is not made shorter.
func TestAShorterLeaseChangesNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := claim(t, f.consumer(), "k", oncemill.ClaimOptions{Lease: time.Minute})
	must(t, c.Extend(within(t), 100*time.Millisecond))
	if n := f.count(`SELECT count(*) FROM oncemill.claims WHERE least(lease_until, effect_until) > clock_timestamp() + interval '30 seconds'`); n != 1 || time.Until(c.Deadline()) < 30*time.Second {
		t.Errorf("the lease or its deadline, in %v, was made shorter", time.Until(c.Deadline()))
	}
}

// The effect's context ends before its lease does.
func TestAnEffectsContextEndsBeforeItsLease(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := claim(t, f.consumer(), "k", oncemill.ClaimOptions{Lease: 500 * time.Millisecond})
	ctx, stop := c.Context(within(t))
	defer stop()
	if deadline, ok := ctx.Deadline(); !ok || !deadline.Equal(c.Deadline()) {
		t.Errorf("its deadline is %v, want %v", deadline, c.Deadline())
	}
	<-ctx.Done()
	want(t, context.Cause(ctx), oncemill.ErrLeaseOver)
	if n := f.count(`SELECT count(*) FROM oncemill.claims WHERE lease_until < clock_timestamp()`); n != 0 {
		t.Log("the lease was over when it was looked at, which a slow machine explains")
	}
}

func TestASchemaWithAnApostrophe(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	must(t, oncemill.Migrate(within(t), f.db, `it's`))
	c := (&oncemill.Inbox{DB: f.db, Schema: `it's`}).Consumer("c")
	must(t, c.Once(within(t), "o", effect("once")))
	claim(t, c, "k", oncemill.ClaimOptions{})
}

// The way down forgets effects in doubt and messages that were acknowledged.
func TestMigratingDownLosesNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	first := claim(t, f.consumer(), "k", oncemill.ClaimOptions{})
	must(t, first.Doubt(within(t), "reply lost", &oncemill.ParkedMessage{Topic: "t", UUID: "u"}))
	failed := claim(t, f.consumer(), "declined", oncemill.ClaimOptions{})
	must(t, failed.Fail(within(t), "declined", nil))
	text, err := schema.FS.ReadFile("0003_guarded_claims.sql")
	must(t, err)
	up, down, _ := strings.Cut(string(text), "-- +goose Down")
	if _, err := f.db.Exec("BEGIN;" + down + ";COMMIT"); err != nil {
		f.exec(`ROLLBACK`)
		return // refused, which is fine
	}
	f.exec(up)
	second, err := f.consumer().Claim(within(t), "k", oncemill.ClaimOptions{})
	if err == nil {
		t.Errorf("an effect in doubt is made again (attempt %d, token %d; the zombie's is %d), and its parked message is gone", second.Attempt(), second.Token(), first.Token())
		if err := first.Settle(within(t), nil, nil); err == nil {
			t.Error("the zombie has settled the claim of another: its token came twice")
		}
	}
	if _, err := f.consumer().Claim(within(t), "declined", oncemill.ClaimOptions{}); err == nil {
		t.Error("what had failed for good is free")
	}
}

// Metrics and alerts hang on Observer.InDoubt.
func TestADoubtThatAResolverFindsIsObservedAndRecorded(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var observed atomic.Int32
	in := &oncemill.Inbox{DB: f.db, Observer: &oncemill.Observer{InDoubt: func(context.Context, string, string, string) { observed.Add(1) }}}
	c := in.Consumer("test")
	claim(t, c, "k", oncemill.ClaimOptions{})
	f.expire("k")
	ctx, cancel := context.WithCancel(within(t))
	r := oncemill.Resolver{Consumer: c, Poll: time.Millisecond, Backoff: time.Hour, MostBackoff: time.Hour,
		Ask: func(context.Context, oncemill.InDoubt) (oncemill.Resolution, error) {
			cancel()
			return oncemill.Resolution{}, nil
		}}
	must(t, r.Run(ctx))
	if observed.Load() != 1 || f.count(`SELECT count(*) FROM oncemill.events WHERE kind = 'in doubt'`) != 1 {
		t.Errorf("observed %d times, %d events 'in doubt'", observed.Load(), f.count(`SELECT count(*) FROM oncemill.events WHERE kind = 'in doubt'`))
	}
}

// A Settle that never works must be left to a person at the Deadline.
func TestAResolverThatCannotWriteGivesUpAtItsDeadline(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	in := &oncemill.Inbox{DB: f.db, DrainTimeout: 50 * time.Millisecond}
	c := in.Consumer("test")
	claim(t, c, "k", oncemill.ClaimOptions{})
	f.expire("k")
	var asked atomic.Int32
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	r := oncemill.Resolver{Consumer: c, Poll: time.Millisecond, Backoff: time.Millisecond, MostBackoff: time.Millisecond, Deadline: time.Millisecond, LandingBound: time.Microsecond, Timeout: 50 * time.Millisecond,
		Ask: func(context.Context, oncemill.InDoubt) (oncemill.Resolution, error) {
			if asked.Add(1) == 5 {
				cancel()
			}
			return oncemill.Resolution{Verdict: oncemill.Happened, Settle: func(ctx context.Context, tx oncemill.Tx) error {
				return errors.New("no such order in our books")
			}}, nil
		}}
	stop := time.AfterFunc(5*time.Second, cancel)
	defer stop.Stop()
	must(t, r.Run(ctx))
	if n := asked.Load(); n > 2 {
		t.Errorf("asked %d times, %d ms after its Deadline of 1 ms it is not given up; nor is there an event", n, 500)
	}
}

func TestALandingBoundBeyondTheDeadlineIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	r := oncemill.Resolver{Consumer: f.consumer(), LandingBound: 48 * time.Hour, Ask: func(context.Context, oncemill.InDoubt) (oncemill.Resolution, error) {
		return oncemill.Resolution{}, nil
	}}
	if r.Check() == nil {
		t.Error("NotHappened is never believed: the Deadline of 24 hours passes before the LandingBound of 48")
	}
}

// Settle's documentation says: DrainTimeout after ctx is cancelled.
func TestSettleIsNotCutOffWhileNobodyCancels(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := claim(t, (&oncemill.Inbox{DB: f.db, DrainTimeout: 200 * time.Millisecond}).Consumer("test"), "k", oncemill.ClaimOptions{})
	must(t, c.Settle(within(t), nil, func(ctx context.Context, tx oncemill.Tx) error {
		_, err := tx.ExecContext(ctx, `SELECT pg_sleep(0.6)`)
		return err
	}))
}

// A claim that has taken its whole lease to get must not be given to an effect.
func TestAClaimIsNotBornOver(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	db := f.open("postgres", f.url)
	db.SetMaxOpenConns(1)
	in := &oncemill.Inbox{DB: db}
	must(t, claim(t, in.Consumer("test"), "warm", oncemill.ClaimOptions{}).Settle(within(t), nil, nil))
	conn, err := db.Conn(within(t))
	must(t, err)
	time.AfterFunc(700*time.Millisecond, func() { conn.Close() })
	c, err := in.Consumer("test").Claim(within(t), "k", oncemill.ClaimOptions{Lease: 500 * time.Millisecond})
	if err == nil && time.Until(c.Deadline()) <= 0 {
		t.Errorf("its deadline was %v ago, before the claim was even sent", -time.Until(c.Deadline()).Round(time.Millisecond))
	}
}

// A released claim and a settled one must be told apart from a later Resolve.
func TestResolveCanBeCalledAgainAfterALostReply(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := f.consumer()
	first := claim(t, c, "k", oncemill.ClaimOptions{})
	f.expire("k")
	must(t, c.Resolve(within(t), "k", first.Token(), oncemill.Happened, "looked"))
	if err := c.Resolve(within(t), "k", first.Token(), oncemill.Happened, "looked"); err != nil {
		t.Errorf("its answer was lost, and calling again says %v", err)
	}
}

// What is not found is believed only after the landing bound.
func TestNotFoundIsNotBelievedBeforeTheLandingBound(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := f.consumer()
	must(t, claim(t, c, "k", oncemill.ClaimOptions{}).Doubt(within(t), "reply lost", nil))
	var asked atomic.Int32
	ctx, cancel := context.WithCancel(within(t))
	r := oncemill.Resolver{Consumer: c, LandingBound: time.Hour, Poll: time.Millisecond, Backoff: time.Millisecond, MostBackoff: time.Millisecond,
		Ask: func(context.Context, oncemill.InDoubt) (oncemill.Resolution, error) {
			if asked.Add(1) == 3 {
				cancel()
			}
			return oncemill.Resolution{Verdict: oncemill.NotHappened}, nil
		}}
	must(t, r.Run(ctx))
	refused(t, c, "k", oncemill.ClaimOptions{}, oncemill.ErrInDoubt)
	f.exec(`UPDATE oncemill.claims SET effect_until = effect_until - interval '1 hour', ask_after = NULL`)
	ctx, cancel = context.WithCancel(within(t))
	defer cancel()
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	for f.count(`SELECT count(*) FROM oncemill.claims`) > 0 {
	}
	cancel()
	must(t, <-done)
}

// A claim that a Resolver has given up stays for a person; a new attempt makes it one
// like any other.
func TestAClaimThatIsGivenUpIsNotAskedAboutUntilItIsAttemptedAgain(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	in := &oncemill.Inbox{DB: f.db}
	c := in.Consumer("test")
	must(t, claim(t, c, "k", oncemill.ClaimOptions{}).Doubt(within(t), "reply lost", nil))
	f.exec(`UPDATE oncemill.claims SET in_doubt_since = clock_timestamp() - interval '2 hours'`)
	asked := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	r := oncemill.Resolver{Consumer: c, Poll: time.Millisecond, Backoff: time.Millisecond, Deadline: time.Hour,
		Ask: func(context.Context, oncemill.InDoubt) (oncemill.Resolution, error) {
			asked <- struct{}{}
			return oncemill.Resolution{}, nil
		}}
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	for givenUp := false; !givenUp; {
		all, err := in.InDoubt(within(t), "", oncemill.InDoubt{}, 1)
		must(t, err)
		givenUp = all[0].GivenUp
	}
	if n := len(asked); n != 1 {
		t.Errorf("asked %d times after its deadline, want once", n)
	}
	again := claim(t, c, "k", oncemill.ClaimOptions{KeyLifetime: time.Hour})
	must(t, again.Doubt(within(t), "lost again", nil))
	<-asked
	<-asked
	cancel()
	must(t, <-done)
}

// An attempt that is under way must not be resolved.
func TestResolveRefusesAClaimInFlight(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := f.consumer()
	first := claim(t, c, "k", oncemill.ClaimOptions{})
	want(t, c.Resolve(within(t), "k", first.Token(), oncemill.NotHappened, ""), oncemill.ErrInFlight)
	must(t, first.Settle(within(t), nil, nil))
}

// A message from before the purged claims may have had its effect.
func TestClaimRefusesMessagesFromBeforeThePurge(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exec(`INSERT INTO oncemill.watermarks VALUES ('test', now() - interval '1 hour')`)
	_, err := f.consumer().Claim(within(t), "k", oncemill.ClaimOptions{Origin: time.Now().Add(-2 * time.Hour)})
	want(t, err, oncemill.ErrTooOld)
	claim(t, f.consumer(), "k", oncemill.ClaimOptions{Origin: time.Now().Add(-30 * time.Minute)})
}

// What is known of an effect in doubt is not purged before it is resolved.
func TestThePurgeKeepsTheEventsOfDoubts(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	in := &oncemill.Inbox{DB: f.db}
	c := in.Consumer("test")
	claim(t, c, "in doubt", oncemill.ClaimOptions{Amount: "7"})
	must(t, claim(t, c, "settled", oncemill.ClaimOptions{}).Settle(within(t), nil, nil))
	f.exec(`UPDATE oncemill.events SET at = at - interval '91 days'`)
	_, err := in.Purge(within(t))
	must(t, err)
	f.wantEvents("in doubt", oncemill.EventClaimed)
	f.wantEvents("settled")
}
