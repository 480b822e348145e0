package oncemill_test

import (
	"context"
	"fmt"
	"log"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
)

var aboutACharge = oncemill.ClaimOptions{Action: "charge", Agent: "ann", Scope: "order-7", Amount: "4.50", Currency: "EUR", Payload: []byte("p")}

// wantAbout checks that the events of a key tell what they are about.
func (f *fixture) wantAbout(key string) {
	f.t.Helper()
	if n := f.count(`SELECT count(*) FROM oncemill.events WHERE key = $1 AND (action = 'charge' AND agent = 'ann' AND amount = 4.50 AND currency = 'EUR') IS NOT TRUE`, key); n != 0 {
		f.t.Errorf("%d events of %s do not tell what they are about", n, key)
	}
}

// ends are the ways to end a claim, and what they make of it.
var ends = []struct {
	name string
	end  func(ctx context.Context, c *oncemill.Claim) error
	kind oncemill.EventKind
	left string // a condition on the claim's row; "": there is none
}{
	{"settle", func(ctx context.Context, c *oncemill.Claim) error { return c.Settle(ctx, []byte("r"), nil) }, oncemill.EventSettled, `outcome = 'settled' AND result = 'r'`},
	{"settle with rows", func(ctx context.Context, c *oncemill.Claim) error { return c.Settle(ctx, []byte("r"), effect("row")) }, oncemill.EventSettled, `outcome = 'settled' AND result = 'r'`},
	{"fail", func(ctx context.Context, c *oncemill.Claim) error { return c.Fail(ctx, "why", nil) }, oncemill.EventFailed, `outcome = 'failed' AND reason = 'why'`},
	{"release", func(ctx context.Context, c *oncemill.Claim) error { return c.Release(ctx, "why") }, oncemill.EventReleased, ""},
	{"give back", func(ctx context.Context, c *oncemill.Claim) error { return c.GiveBack(ctx, "why") }, oncemill.EventReleased, ""},
	{"doubt", func(ctx context.Context, c *oncemill.Claim) error { return c.Doubt(ctx, "why", nil) }, oncemill.EventInDoubt, `outcome IS NULL AND in_doubt_since IS NOT NULL AND reason = 'why'`},
	{"extend", func(ctx context.Context, c *oncemill.Claim) error { return c.Extend(ctx, time.Hour) }, oncemill.EventExtended, `outcome IS NULL AND lease_until > clock_timestamp() + interval '59 minutes'`},
}

func TestAClaimIsEndedInAnotherProcess(t *testing.T) {
	eachWay(t, func(t *testing.T, f *fixture, consumer func() *oncemill.Consumer) {
		for _, e := range ends {
			first := claim(t, consumer(), e.name, aboutACharge)
			resumed := consumer().Resume(e.name, first.Token())
			if resumed.Token() != first.Token() || resumed.Key() != e.name || resumed.Consumer() != "test" || resumed.ProviderKey() != first.ProviderKey() ||
				!resumed.Deadline().IsZero() || !resumed.LeaseUntil().IsZero() || !resumed.FirstClaimed().IsZero() || resumed.Attempt() != 0 {
				t.Errorf("got %+v", resumed)
			}
			must(t, e.end(within(t), resumed))
			left := 1
			if e.left == "" {
				left = 0
				e.left = "true"
			}
			if n := f.count(`SELECT count(*) FROM oncemill.claims WHERE key = $1 AND `+e.left, e.name); n != left {
				t.Errorf("%s: %d claims are as they should be, want %d", e.name, n, left)
			}
			f.wantEvents(e.name, oncemill.EventClaimed, e.kind)
			must(t, e.end(within(t), consumer().Resume(e.name, first.Token()))) // its answer was lost
			f.wantAbout(e.name)
		}
		f.wantEffects("row", 1)
		if n := f.count(`SELECT count(*) FROM oncemill.claims WHERE scope = 'order-7'`); n != 5 {
			t.Errorf("%d of 5 claims have their scope", n)
		}
	})
}

func TestAClaimIsNotEndedWithAWrongToken(t *testing.T) {
	eachWay(t, func(t *testing.T, f *fixture, consumer func() *oncemill.Consumer) {
		for _, e := range ends {
			first := claim(t, consumer(), e.name, aboutACharge)
			for _, token := range []int64{first.Token() - 1, first.Token() + 1000000, 0, -1} {
				want(t, e.end(within(t), consumer().Resume(e.name, token)), oncemill.ErrFenced)
			}
			want(t, e.end(within(t), consumer().Inbox().Consumer("other").Resume(e.name, first.Token())), oncemill.ErrFenced)
			if n := f.count(`SELECT count(*) FROM oncemill.claims WHERE key = $1 AND token = $2 AND settled_at IS NULL AND in_doubt_since IS NULL`, e.name, first.Token()); n != 1 {
				t.Errorf("%s with a wrong token changed the claim", e.name)
			}
			if n := f.count(`SELECT count(*) FROM oncemill.events WHERE key = $1 AND consumer = 'test' AND kind = 'refused' AND note LIKE '%refused:%'`, e.name); n != 4 {
				t.Errorf("%s: %d of 4 refusals are in the events", e.name, n)
			}
			f.exec(`DELETE FROM oncemill.events WHERE consumer = 'other'`)
			f.wantAbout(e.name)
		}
	})
}

func TestAClaimThatWasReleasedAndClaimedAgainIsFenced(t *testing.T) {
	eachWay(t, func(t *testing.T, f *fixture, consumer func() *oncemill.Consumer) {
		for _, e := range ends {
			first := claim(t, consumer(), e.name, aboutACharge)
			must(t, consumer().Resume(e.name, first.Token()).Release(within(t), "nothing was sent"))
			second := claim(t, consumer(), e.name, aboutACharge)
			err := e.end(within(t), consumer().Resume(e.name, first.Token()))
			if e.kind != oncemill.EventReleased { // which counts as done
				want(t, err, oncemill.ErrFenced)
			} else {
				must(t, err)
			}
			if n := f.count(`SELECT count(*) FROM oncemill.claims WHERE key = $1 AND token = $2 AND settled_at IS NULL AND in_doubt_since IS NULL`, e.name, second.Token()); n != 1 {
				t.Errorf("%s by the first holder changed the claim of the second", e.name)
			}
			f.wantAbout(e.name)
		}
		f.wantEffects("row", 0)
	})
}

// An earlier attempt may have had its effect, and the caller knows only of its own.
func TestAFurtherAttemptIsNotReleasedElsewhere(t *testing.T) {
	eachWay(t, func(t *testing.T, f *fixture, consumer func() *oncemill.Consumer) {
		opts := aboutACharge
		opts.KeyLifetime = time.Hour
		claim(t, consumer(), "k", opts)
		f.expire("k")
		second := claim(t, consumer(), "k", opts)
		want(t, consumer().Resume("k", second.Token()).Release(within(t), "sure"), oncemill.ErrInDoubt)
		want(t, second.Release(within(t), "sure"), oncemill.ErrInDoubt)
		if n := f.count(`SELECT count(*) FROM oncemill.claims WHERE token = $1 AND settled_at IS NULL`, second.Token()); n != 1 {
			t.Fatal("the first attempt, which is in doubt, is forgotten")
		}
		want(t, consumer().Resume("k", second.Token()).GiveBack(within(t), "not begun"), oncemill.ErrInDoubt)
		f.wantEvents("k", oncemill.EventClaimed, oncemill.EventInDoubt, oncemill.EventTakenOver, oncemill.EventRefused, oncemill.EventRefused)
		f.wantAbout("k")
		must(t, consumer().Resume("k", second.Token()).Settle(within(t), nil, nil))
		f.wantAbout("k")
	})
}

// The provider forgets its key, whoever extends.
func TestAFurtherAttemptIsNotExtendedElsewhere(t *testing.T) {
	eachWay(t, func(t *testing.T, f *fixture, consumer func() *oncemill.Consumer) {
		opts := oncemill.ClaimOptions{KeyLifetime: time.Minute, Lease: time.Second}
		must(t, claim(t, consumer(), "k", opts).Doubt(within(t), "reply lost", nil))
		second := claim(t, consumer(), "k", opts)
		resumed := consumer().Resume("k", second.Token())
		must(t, resumed.Extend(within(t), time.Hour))
		if !resumed.LeaseUntil().Equal(second.LeaseUntil()) {
			t.Errorf("its lease ends at %v, want %v as before", resumed.LeaseUntil(), second.LeaseUntil())
		}
		if n := f.count(`SELECT count(*) FROM oncemill.claims WHERE greatest(lease_until, effect_until) <= claimed_at + interval '1 minute'`); n != 1 {
			t.Error("its lease outlives the provider's key")
		}
	})
}

func TestClaimsInDoubtAreNotedOnce(t *testing.T) {
	eachWay(t, func(t *testing.T, f *fixture, consumer func() *oncemill.Consumer) {
		var mu sync.Mutex
		observed := map[string]int{}
		observer := &oncemill.Observer{InDoubt: func(_ context.Context, consumer, key, reason string) {
			mu.Lock()
			defer mu.Unlock()
			observed[consumer+" "+key+": "+reason]++
		}}
		c := consumer()
		for i := range 50 {
			claim(t, c, fmt.Sprint(i), aboutACharge)
		}
		claim(t, c, "odd\x00", aboutACharge)
		first := claim(t, c, "settled late", aboutACharge)
		claim(t, c.Inbox().Consumer("another"), "k", aboutACharge)
		f.exec(`UPDATE oncemill.claims SET lease_until = clock_timestamp() - interval '1 second'`)
		claim(t, c, "under way", aboutACharge)
		must(t, first.Settle(within(t), nil, nil))
		var noted atomic.Int32
		together(4, func(int) {
			in := &oncemill.Inbox{DB: f.db, Observer: observer}
			n, err := in.Consumer("test").NoteDoubts(within(t), time.Time{})
			if err != nil {
				t.Error(err)
			}
			noted.Add(int32(n))
		})
		if noted.Load() != 51 || len(observed) != 51 || observed["test odd\x00: its lease was over"] != 1 {
			t.Errorf("%d noted, %d observed: %v", noted.Load(), len(observed), observed)
		}
		for key, n := range observed {
			if n != 1 {
				t.Errorf("%s: observed %d times", key, n)
			}
		}
		if n := f.count(`SELECT count(DISTINCT key) FROM oncemill.events WHERE kind = 'in doubt' AND note = 'its lease was over' AND actor IS NOT NULL AND token > 0`); n != 51 {
			t.Errorf("%d keys have an event", n)
		}
		if n := f.count(`SELECT count(*) FROM oncemill.claims WHERE in_doubt_since = lease_until AND reason = 'its lease was over' AND consumer = 'test'`); n != 51 {
			t.Errorf("%d claims are noted to be in doubt", n)
		}
		f.wantEvents("7", oncemill.EventClaimed, oncemill.EventInDoubt)
		f.wantAbout("7")
		f.wantEvents("settled late", oncemill.EventClaimed, oncemill.EventSettled)
		if n, err := c.NoteDoubts(within(t), time.Time{}); n != 0 || err != nil {
			t.Errorf("noted again: %d, %v", n, err)
		}
		refused(t, c, "7", oncemill.ClaimOptions{}, oncemill.ErrInDoubt) // noted only once
		f.wantEvents("7", oncemill.EventClaimed, oncemill.EventInDoubt, oncemill.EventBlocked)
	})
}

func TestDoubtsFromBeforeAreNotNoted(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := f.consumer()
	for _, key := range []string{"old", "new"} {
		claim(t, c, key, oncemill.ClaimOptions{})
	}
	f.exec(`UPDATE oncemill.claims SET lease_until = clock_timestamp() - CASE key WHEN 'old' THEN interval '1 hour' ELSE interval '1 second' END`)
	if n, err := c.NoteDoubts(within(t), time.Now().Add(-time.Minute)); n != 1 || err != nil {
		t.Errorf("noted %d, %v", n, err)
	}
	f.wantEvents("old", oncemill.EventClaimed)
	f.wantEvents("new", oncemill.EventClaimed, oncemill.EventInDoubt)
}

func TestManyDoubtsAreNoted(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exec(`INSERT INTO oncemill.claims (consumer, key, token, attempts, claimed_at, lease_until, effect_until, settled_at, outcome)
		SELECT 'test', i, nextval('oncemill.tokens'), 1, now() - interval '1 hour', now() - interval '1 minute', now(), NULL, NULL FROM generate_series(1, 2500) i`)
	if n, err := f.consumer().NoteDoubts(within(t), time.Time{}); n != 2500 || err != nil {
		t.Errorf("noted %d, %v", n, err)
	}
}

func TestWhatIsNotedToBeInDoubtMayBeSettledButNotExtended(t *testing.T) {
	eachWay(t, func(t *testing.T, f *fixture, consumer func() *oncemill.Consumer) {
		c := consumer()
		first := claim(t, c, "k", aboutACharge)
		f.expire("k")
		must(t, first.Extend(within(t), time.Millisecond*100)) // nobody has noticed
		f.expire("k")
		_, err := c.NoteDoubts(within(t), time.Time{})
		must(t, err)
		want(t, first.Extend(within(t), 0), oncemill.ErrInDoubt)
		want(t, consumer().Resume("k", first.Token()).Extend(within(t), 0), oncemill.ErrInDoubt)
		must(t, consumer().Resume("k", first.Token()).Settle(within(t), []byte("late"), nil))
		must(t, first.Settle(within(t), []byte("late"), nil))
		f.wantEvents("k", oncemill.EventClaimed, oncemill.EventExtended, oncemill.EventInDoubt, oncemill.EventRefused, oncemill.EventRefused, oncemill.EventSettled)
		f.wantAbout("k")
		if n := f.count(`SELECT count(*) FROM oncemill.claims WHERE in_doubt_since IS NULL AND reason IS NULL AND result = 'late'`); n != 1 {
			t.Error("a claim that was settled late is not settled")
		}
	})
}

// A claim that is being settled is not in doubt, nor is it waited for.
func TestWhatIsBeingSettledIsNotNotedToBeInDoubt(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := f.consumer()
	first := claim(t, c, "k", oncemill.ClaimOptions{})
	f.expire("k")
	must(t, first.Settle(within(t), nil, func(context.Context, oncemill.Tx) error {
		ctx, cancel := context.WithTimeout(within(t), 10*time.Second)
		defer cancel()
		if n, err := c.NoteDoubts(ctx, time.Time{}); n != 0 || err != nil {
			t.Errorf("noted %d, %v", n, err)
		}
		return nil
	}))
	if n, err := c.NoteDoubts(within(t), time.Time{}); n != 0 || err != nil {
		t.Errorf("noted %d, %v", n, err)
	}
	f.wantEvents("k", oncemill.EventClaimed, oncemill.EventSettled)
}

// A server whose callers claim in one request, and settle in another.
func ExampleConsumer_Resume() {
	ctx := context.Background()
	payments := (&oncemill.Inbox{DB: exampleDB, ClaimBatch: 64}).Consumer("payments")
	claim, err := payments.Claim(ctx, "order-7", oncemill.ClaimOptions{Nonce: []byte("random, and sent again if no answer comes")})
	if err != nil {
		log.Fatal(err)
	}
	token := claim.Token() // goes to the caller, and comes back

	fmt.Println(payments.Resume("order-7", token).Settle(ctx, []byte("receipt"), nil))
}

// A program that tells of claims whose holders have vanished.
func ExampleConsumer_NoteDoubts() {
	ctx := context.Background()
	payments := (&oncemill.Inbox{DB: exampleDB, Observer: &oncemill.Observer{
		InDoubt: func(_ context.Context, _, key, reason string) { fmt.Println(key, "is in doubt:", reason) },
	}}).Consumer("payments")
	n, err := payments.NoteDoubts(ctx, time.Now().Add(-time.Hour)) // every few seconds
	fmt.Println(n, err)
}
