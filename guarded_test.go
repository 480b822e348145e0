package oncemill_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
)

// claim claims a key that is to be had.
func claim(t *testing.T, c *oncemill.Consumer, key string, opts oncemill.ClaimOptions) *oncemill.Claim {
	t.Helper()
	claim, err := c.Claim(within(t), key, opts)
	must(t, err)
	return claim
}

// refused claims a key that is not.
func refused(t *testing.T, c *oncemill.Consumer, key string, opts oncemill.ClaimOptions, because error) *oncemill.Held {
	t.Helper()
	_, err := c.Claim(within(t), key, opts)
	want(t, err, because)
	var e *oncemill.Error
	if !errors.As(err, &e) || e.Held == nil {
		t.Fatalf("%v does not tell by what the key is held", err)
	}
	return e.Held
}

// expire ends the lease of a claim.
func (f *fixture) expire(key string) {
	f.t.Helper()
	f.exec(`UPDATE oncemill.claims SET lease_until = clock_timestamp() - interval '1 microsecond', effect_until = clock_timestamp() WHERE key = $1 AND settled_at IS NULL`, key)
}

func (f *fixture) wantEvents(key string, kinds ...oncemill.EventKind) {
	f.t.Helper()
	rows, err := f.db.Query(`SELECT kind FROM oncemill.events WHERE key = $1 ORDER BY id`, key)
	must(f.t, err)
	defer rows.Close()
	var got []oncemill.EventKind
	for rows.Next() {
		var kind oncemill.EventKind
		must(f.t, rows.Scan(&kind))
		got = append(got, kind)
	}
	if len(got) != len(kinds) {
		f.t.Fatalf("events of %s: got %q, want %q", key, got, kinds)
	}
	for i := range got {
		if got[i] != kinds[i] {
			f.t.Fatalf("events of %s: got %q, want %q", key, got, kinds)
		}
	}
}

func TestASettledClaimAnswersWithItsResult(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := f.consumer()
	first := claim(t, c, "k", oncemill.ClaimOptions{Amount: "452.00", Currency: "USD", Payload: []byte("p")})
	must(t, first.Settle(within(t), []byte("receipt"), effect("row")))
	f.wantEffects("row", 1)

	held := refused(t, c, "k", oncemill.ClaimOptions{Amount: "452.00", Currency: "USD"}, oncemill.ErrSettled)
	if held.Outcome != oncemill.Settled || string(held.Result) != "receipt" || held.Token != first.Token() {
		t.Errorf("got %+v", held)
	}
	f.wantEvents("k", oncemill.EventClaimed, oncemill.EventSettled, oncemill.EventBlocked)
	blocked, err := (&oncemill.Inbox{DB: f.db}).Blocked(within(t), "", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	must(t, err)
	if len(blocked) != 1 || blocked[0] != (oncemill.Blocked{Consumer: "test", Currency: "USD", Claims: 1, Effects: 1, Amount: "452.00"}) {
		t.Errorf("got %+v", blocked)
	}

	// It asks again, and does not say what it is about.
	refused(t, c, "k", oncemill.ClaimOptions{}, oncemill.ErrSettled)
	blocked, err = (&oncemill.Inbox{DB: f.db}).Blocked(within(t), "", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	must(t, err)
	if len(blocked) != 1 || blocked[0] != (oncemill.Blocked{Consumer: "test", Currency: "USD", Claims: 2, Effects: 1, Amount: "452.00"}) {
		t.Errorf("got %+v", blocked)
	}
}

func TestAClaimInFlightIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	first := claim(t, f.consumer(), "k", oncemill.ClaimOptions{})
	held := refused(t, f.consumer(), "k", oncemill.ClaimOptions{Patient: true}, oncemill.ErrInFlight)
	if held.Remaining <= 0 || held.Remaining > time.Minute || held.InDoubt {
		t.Errorf("got %+v", held)
	}
	f.wantEvents("k", oncemill.EventClaimed)
	refused(t, f.consumer(), "k", oncemill.ClaimOptions{}, oncemill.ErrInFlight)
	f.wantEvents("k", oncemill.EventClaimed, oncemill.EventBlocked)
	must(t, first.Fail(within(t), "declined", nil))
	held = refused(t, f.consumer(), "k", oncemill.ClaimOptions{}, oncemill.ErrSettled)
	if held.Outcome != oncemill.Failed || held.Reason != "declined" {
		t.Errorf("got %+v", held)
	}
}

// Once must not take the claim of an effect for one of its own.
func TestOnceWaitsForAGuardedClaim(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	first := claim(t, f.consumer(), "k", oncemill.ClaimOptions{})
	want(t, f.consumer().Once(within(t), "k", effect("once")), oncemill.ErrInFlight)
	must(t, first.Settle(within(t), nil, nil))
	must(t, f.consumer().Once(within(t), "k", effect("once")))
	f.wantEffects("once", 0)
}

func TestAReleasedKeyIsFreeAndItsTokenNeverComesAgain(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	first := claim(t, f.consumer(), "k", oncemill.ClaimOptions{})
	must(t, first.Release(within(t), "nothing was sent"))
	must(t, first.Release(within(t), "nothing was sent")) // its answer was lost
	second := claim(t, f.consumer(), "k", oncemill.ClaimOptions{})
	if second.Token() <= first.Token() || second.ProviderKey() != first.ProviderKey() {
		t.Errorf("tokens %d, %d; provider keys %s, %s", first.Token(), second.Token(), first.ProviderKey(), second.ProviderKey())
	}
	want(t, first.Settle(within(t), []byte("zombie"), effect("zombie")), oncemill.ErrFenced)
	f.wantEffects("zombie", 0)
	must(t, second.Settle(within(t), nil, nil))
	f.wantEvents("k", oncemill.EventClaimed, oncemill.EventReleased, oncemill.EventClaimed, oncemill.EventRefused, oncemill.EventSettled)
}

func TestALateSettleOfAnUntouchedClaimIsFine(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	first := claim(t, f.consumer(), "k", oncemill.ClaimOptions{})
	f.expire("k")
	refused(t, f.consumer(), "k", oncemill.ClaimOptions{}, oncemill.ErrInDoubt)
	must(t, first.Settle(within(t), nil, effect("row")))
	must(t, first.Settle(within(t), nil, effect("row"))) // its answer was lost
	f.wantEffects("row", 1)
	f.wantEvents("k", oncemill.EventClaimed, oncemill.EventInDoubt, oncemill.EventBlocked, oncemill.EventSettled)
}

func TestATakenOverClaimFencesItsFirstHolder(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	first := claim(t, f.consumer(), "k", oncemill.ClaimOptions{})
	f.expire("k")
	second := claim(t, f.consumer(), "k", oncemill.ClaimOptions{KeyLifetime: time.Hour})
	if second.Attempt() != 2 || !second.FirstClaimed().Equal(first.FirstClaimed()) {
		t.Errorf("attempt %d, first claimed %v and %v", second.Attempt(), first.FirstClaimed(), second.FirstClaimed())
	}
	for _, end := range []func() error{
		func() error { return first.Settle(within(t), nil, effect("zombie")) },
		func() error { return first.Fail(within(t), "no", nil) },
		func() error { return first.Release(within(t), "no") },
		func() error { return first.Doubt(within(t), "no", nil) },
		func() error { return first.Extend(within(t), 0) },
	} {
		want(t, end(), oncemill.ErrFenced)
	}
	must(t, second.Settle(within(t), nil, effect("row")))
	f.wantEffects("zombie", 0)
	f.wantEffects("row", 1)
}

func TestNoAttemptOutlivesTheProvidersKey(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	claim(t, f.consumer(), "k", oncemill.ClaimOptions{})
	f.exec(`UPDATE oncemill.claims SET claimed_at = clock_timestamp() - interval '22 hours 59 minutes 30 seconds'`)
	f.expire("k")
	refused(t, f.consumer(), "k", oncemill.ClaimOptions{KeyLifetime: 23 * time.Hour}, oncemill.ErrInDoubt) // the lease would not fit
	claim(t, f.consumer(), "k", oncemill.ClaimOptions{KeyLifetime: 23 * time.Hour, Lease: 20 * time.Second})
}

func TestAClaimIsDurableWhateverTheDatabaseDefaultsTo(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "settings of the connection string")
	f := newFixture(t)
	f.exec(`CREATE TABLE settings (name text)`)
	f.exec(`CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		INSERT INTO settings VALUES (current_setting('synchronous_commit')); RETURN NEW; END $$`)
	f.exec(`CREATE TRIGGER note AFTER INSERT ON oncemill.events FOR EACH ROW EXECUTE FUNCTION note()`)
	for _, mode := range []struct{ is, want string }{{"off", "on"}, {"local", "on"}, {"remote_write", "on"}, {"on", "on"}, {"remote_apply", "remote_apply"}} {
		f.exec(`ALTER ROLE CURRENT_USER IN DATABASE ` + f.databaseName() + ` SET synchronous_commit = ` + mode.is)
		db := f.open("postgres", f.url)
		c := claim(t, (&oncemill.Inbox{DB: db}).Consumer("test"), mode.is, oncemill.ClaimOptions{})
		must(t, c.Settle(within(t), nil, nil))
		if n := f.count(`SELECT count(*) FROM settings WHERE name = $1`, mode.want); n != 2 {
			t.Errorf("synchronous_commit = %s by default: %d of 2 commits were made with %s", mode.is, n, mode.want)
		}
		f.exec(`DELETE FROM settings`)
		db.Close()
	}
}

func (f *fixture) databaseName() (name string) {
	f.t.Helper()
	must(f.t, f.db.QueryRow(`SELECT quote_ident(current_database())`).Scan(&name))
	return name
}

func TestResolveEndsWhatIsInDoubt(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	in := &oncemill.Inbox{DB: f.db}
	c := in.Consumer("test")
	long := string(make([]byte, 3000))
	for _, key := range []string{"happened", "not", "never", "odd\x00\xff", long} {
		claim(t, c, key, oncemill.ClaimOptions{Amount: "7", Currency: "EUR", Payload: []byte("order")})
	}
	all, err := in.InDoubt(within(t), "", oncemill.InDoubt{}, 10)
	must(t, err)
	if len(all) != 0 {
		t.Fatalf("in flight, but listed: %+v", all)
	}
	want(t, c.Resolve(within(t), "not", 1, oncemill.NotHappened, "early"), oncemill.ErrFenced)
	f.exec(`UPDATE oncemill.claims SET lease_until = clock_timestamp()`)
	var after oncemill.InDoubt
	for range 5 { // page by page
		page, err := in.InDoubt(within(t), "test", after, 1)
		must(t, err)
		if len(page) != 1 {
			t.Fatalf("after %q: got %d", after.Key, len(page))
		}
		after = page[0]
		if after.Amount != "7" || after.Currency != "EUR" || string(after.Payload) != "order" || after.Attempts != 1 {
			t.Errorf("got %+v", after)
		}
		if key := after.Key; after.ProviderKey() != oncemill.ProviderKey("test", key) && after.ProviderKey() != oncemill.ProviderKey("test", long) {
			t.Errorf("%q: its provider key changed", key)
		}
		verdict, ok := map[string]oncemill.Verdict{"happened": oncemill.Happened, "never": oncemill.Never}[after.Key]
		if !ok {
			verdict = oncemill.NotHappened
		}
		must(t, c.Resolve(within(t), after.Key, after.Token, verdict, "I looked"))
	}
	if n := f.count(`SELECT count(*) FROM oncemill.claims`); n != 2 {
		t.Errorf("%d claims are left, want 2", n)
	}
	refused(t, c, "happened", oncemill.ClaimOptions{}, oncemill.ErrSettled)
	if held := refused(t, c, "never", oncemill.ClaimOptions{}, oncemill.ErrSettled); held.Outcome != oncemill.Failed || held.Reason != "I looked" {
		t.Errorf("got %+v", held)
	}
	want(t, c.Resolve(within(t), "never", after.Token, oncemill.Happened, ""), oncemill.ErrSettled)
	if err := c.Resolve(within(t), "never", 1, oncemill.Unknown, ""); err == nil {
		t.Error("Unknown resolves nothing")
	}
}

// A zombie must not be told that it has settled what a person has settled.
func TestAResolvedClaimFencesItsHolder(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := f.consumer()
	first := claim(t, c, "k", oncemill.ClaimOptions{})
	f.expire("k")
	must(t, c.Resolve(within(t), "k", first.Token(), oncemill.Happened, ""))
	want(t, first.Settle(within(t), nil, effect("row")), oncemill.ErrFenced)
	f.wantEffects("row", 0)
}

func TestAResolverAsksUntilItKnows(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := f.consumer()
	answers := make(chan oncemill.Resolution)
	r := oncemill.Resolver{
		Consumer: c, Backoff: time.Millisecond, LandingBound: time.Nanosecond, Poll: 10 * time.Millisecond,
		Ask: func(ctx context.Context, d oncemill.InDoubt) (oncemill.Resolution, error) {
			select {
			case a := <-answers:
				return a, nil
			case <-ctx.Done():
				return oncemill.Resolution{}, ctx.Err()
			}
		},
	}
	ctx, cancel := context.WithCancel(within(t))
	done := make(chan error, 2)
	for range 2 {
		go func() { done <- r.Run(ctx) }()
	}
	zombie := claim(t, c, "a", oncemill.ClaimOptions{})
	f.expire("a")
	answers <- oncemill.Resolution{}
	answers <- oncemill.Resolution{Verdict: oncemill.Happened, Result: []byte("found"), Settle: effect("booked")}
	for {
		_, err := c.Claim(within(t), "a", oncemill.ClaimOptions{Patient: true})
		if errors.Is(err, oncemill.ErrInFlight) || errors.Is(err, oncemill.ErrInDoubt) {
			continue
		}
		want(t, err, oncemill.ErrSettled)
		break
	}
	if held := refused(t, c, "a", oncemill.ClaimOptions{}, oncemill.ErrSettled); string(held.Result) != "found" {
		t.Errorf("got %+v", held)
	}
	f.wantEffects("booked", 1)
	want(t, zombie.Settle(within(t), nil, effect("zombie")), oncemill.ErrFenced)

	claim(t, c, "b", oncemill.ClaimOptions{})
	f.expire("b")
	answers <- oncemill.Resolution{Verdict: oncemill.NotHappened}
	for {
		if again, err := c.Claim(within(t), "b", oncemill.ClaimOptions{}); err == nil {
			must(t, again.Settle(within(t), nil, nil))
			break
		}
	}
	cancel()
	must(t, <-done)
	must(t, <-done)
}

func TestKeepExtendsTheLeaseAndEndsWhenItIsLost(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := f.consumer()
	kept := claim(t, c, "k", oncemill.ClaimOptions{Lease: 3 * time.Second})
	err := kept.Keep(within(t), func(ctx context.Context) error {
		for f.count(`SELECT count(*) FROM oncemill.events WHERE kind = 'extended'`) < 2 {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			time.Sleep(10 * time.Millisecond)
		}
		f.exec(`UPDATE oncemill.claims SET token = nextval('oncemill.tokens')`)
		<-ctx.Done()
		return context.Cause(ctx)
	})
	want(t, err, oncemill.ErrFenced)
}

// The life of claims with each driver, in a schema with a name that needs quoting.
func TestGuardedClaimsWithEachDriver(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"postgres", "pgx"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			db := f.open(driver, f.url)
			must(t, oncemill.Migrate(within(t), db, `od"d Name`))
			in := &oncemill.Inbox{DB: db, Schema: `od"d Name`}
			c := in.Consumer("c")
			opts := oncemill.ClaimOptions{
				Fingerprint: []byte("f"), Origin: time.Now().Add(-time.Hour), Lease: time.Second, KeyLifetime: time.Hour,
				Amount: "-1.5", Currency: "EUR", Payload: []byte{0, 255}, Actor: "tester",
				Park: &oncemill.ParkedMessage{Topic: "t", UUID: "u\x00", Metadata: map[string]string{"a": "\xff"}, OrderingKey: []byte{0}, Payload: []byte("p")},
			}
			one := claim(t, c, "settled", opts)
			must(t, one.Extend(within(t), 0))
			must(t, one.Settle(within(t), []byte{1, 0}, effect("row")))
			if held := refused(t, c, "settled", opts, oncemill.ErrSettled); string(held.Result) != "\x01\x00" {
				t.Errorf("got %+v", held)
			}
			must(t, claim(t, c, "failed", opts).Fail(within(t), "why\x00", nil))
			must(t, claim(t, c, "released", opts).Release(within(t), ""))
			must(t, claim(t, c, "doubt", opts).Doubt(within(t), "", opts.Park))
			again := claim(t, c, "doubt", opts)
			must(t, again.Doubt(within(t), "", nil))
			opts.KeyLifetime = 0
			refused(t, c, "doubt", opts, oncemill.ErrInDoubt)
			opts.Fingerprint = []byte("g")
			refused(t, c, "doubt", opts, oncemill.ErrKeyReused)
			doubts, err := in.InDoubt(within(t), "c", oncemill.InDoubt{}, 10)
			must(t, err)
			if len(doubts) != 1 || doubts[0].Attempts != 2 || doubts[0].Message == nil || doubts[0].Message.Metadata["a"] != "\xff" ||
				string(doubts[0].Payload) != "\x00\xff" || doubts[0].Amount != "-1.5" {
				t.Fatalf("got %+v", doubts)
			}
			asked := make(chan struct{}, 10)
			ctx, cancel := context.WithCancel(within(t))
			done := make(chan error)
			resolver := oncemill.Resolver{Consumer: c, LandingBound: time.Nanosecond, Backoff: time.Millisecond, Poll: time.Millisecond, Deadline: time.Hour,
				Ask: func(context.Context, oncemill.InDoubt) (oncemill.Resolution, error) {
					asked <- struct{}{}
					if len(asked) < 2 {
						return oncemill.Resolution{}, nil
					}
					return oncemill.Resolution{Verdict: oncemill.NotHappened}, nil
				}}
			go func() { done <- resolver.Run(ctx) }()
			for f.count(`SELECT count(*) FROM "od""d Name".outbox WHERE topic = 't' AND ordering_key = '\x00' AND payload = 'p'`) == 0 {
			}
			cancel()
			must(t, <-done)
			events, err := c.Events(within(t), "doubt", 0, 100)
			must(t, err)
			kinds := ""
			for _, e := range events {
				kinds += string(e.Kind) + ", "
			}
			if kinds != "claimed, in doubt, taken over, in doubt, blocked, conflict, asking, asked, asking, released, " {
				t.Errorf("events: %s", kinds)
			}
			if held, err := c.Held(within(t), "doubt"); held != nil || err != nil {
				t.Errorf("got %+v, %v", held, err)
			}
			_, err = in.Purge(within(t))
			must(t, err)
		})
	}
}
