package oncemill_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
)

// eachWay runs a test with claims that share statements, and with claims that do not.
func eachWay(t *testing.T, test func(t *testing.T, f *fixture, consumer func() *oncemill.Consumer)) {
	t.Parallel()
	for _, batch := range []int{0, 64} {
		t.Run(fmt.Sprint("ClaimBatch ", batch), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			test(t, f, func() *oncemill.Consumer { return (&oncemill.Inbox{DB: f.db, ClaimBatch: batch}).Consumer("test") })
		})
	}
}

func nonce(b byte) []byte { return bytes.Repeat([]byte{b}, 16) }

// again claims a key that was claimed by the same call, and checks that nothing changed.
func again(t *testing.T, c *oncemill.Consumer, first *oncemill.Claim, opts oncemill.ClaimOptions) *oncemill.Claim {
	t.Helper()
	second := claim(t, c, first.Key(), opts)
	if second.Token() != first.Token() || second.Attempt() != 1 || !second.LeaseUntil().Equal(first.LeaseUntil()) || !second.FirstClaimed().Equal(first.FirstClaimed()) {
		t.Errorf("got token %d, attempt %d, until %v; want what the first call got: token %d, until %v",
			second.Token(), second.Attempt(), second.LeaseUntil(), first.Token(), first.LeaseUntil())
	}
	if d := second.Deadline().Sub(first.Deadline()); d > 50*time.Millisecond { // it is a time of this process, and Postgres's clock is another
		t.Errorf("its deadline was moved by %v", d)
	}
	return second
}

func TestARepeatedCallGetsItsClaimAgain(t *testing.T) {
	testenv.NeedsSession(t, "leases that are shorter than a new session of a pooler may take")
	eachWay(t, func(t *testing.T, f *fixture, consumer func() *oncemill.Consumer) {
		opts := oncemill.ClaimOptions{Nonce: nonce(1), Fingerprint: []byte("f"), Action: "charge", Agent: "ann", Amount: "4.50", Currency: "EUR"}
		first := claim(t, consumer(), "k", opts)
		again(t, consumer(), first, opts)
		other := again(t, consumer(), first, opts)
		f.wantEvents("k", oncemill.EventClaimed, oncemill.EventRepeated, oncemill.EventRepeated)
		if n := f.count(`SELECT count(*) FROM oncemill.claims WHERE nonce IS NOT NULL AND position($1::bytea IN nonce) = 0`, opts.Nonce); n != 1 {
			t.Error("whoever reads the table can repeat the call")
		}
		must(t, other.Settle(within(t), []byte("r"), nil))
		must(t, first.Settle(within(t), []byte("r"), nil))
		refused(t, consumer(), "k", opts, oncemill.ErrSettled)
	})
}

func TestARepeatedCallGetsTheLeaseThatIsLeft(t *testing.T) {
	testenv.NeedsSession(t, "leases that are shorter than a new session of a pooler may take")
	eachWay(t, func(t *testing.T, f *fixture, consumer func() *oncemill.Consumer) {
		opts := oncemill.ClaimOptions{Nonce: nonce(1), Lease: 10 * time.Second}
		first := claim(t, consumer(), "k", opts)
		f.exec(`UPDATE oncemill.claims SET lease_until = lease_until - interval '5 seconds', effect_until = effect_until - interval '5 seconds'`)
		second := claim(t, consumer(), "k", opts)
		if d := first.Deadline().Sub(second.Deadline()); d < 4900*time.Millisecond {
			t.Errorf("its deadline is %v before that of the first call, want 5 s", d)
		}
		f.exec(`UPDATE oncemill.claims SET lease_until = clock_timestamp() + interval '500 milliseconds'`) // less than the margin
		_, err := consumer().Claim(within(t), "k", opts)
		want(t, err, oncemill.ErrLeaseOver)
		if n := f.count(`SELECT count(*) FROM oncemill.claims WHERE token = $1 AND settled_at IS NULL`, first.Token()); n != 1 {
			t.Error("the first call's claim was given back")
		}
	})
}

func TestANonceIsNoLongerGood(t *testing.T) {
	eachWay(t, func(t *testing.T, f *fixture, consumer func() *oncemill.Consumer) {
		opts := oncemill.ClaimOptions{Nonce: nonce(1), Fingerprint: []byte("f")}
		set := func(key, what string) { f.exec(`UPDATE oncemill.claims SET `+what+` WHERE key = $1`, key) }
		for _, c := range []struct {
			key     string
			then    func(first *oncemill.Claim)
			opts    oncemill.ClaimOptions
			because error
		}{
			{"another nonce", nil, oncemill.ClaimOptions{Nonce: nonce(2), Fingerprint: []byte("f")}, oncemill.ErrInFlight},
			{"a longer nonce", nil, oncemill.ClaimOptions{Nonce: append(nonce(1), 1), Fingerprint: []byte("f")}, oncemill.ErrInFlight},
			{"no nonce", nil, oncemill.ClaimOptions{Fingerprint: []byte("f")}, oncemill.ErrInFlight},
			{"another fingerprint", nil, oncemill.ClaimOptions{Nonce: nonce(1), Fingerprint: []byte("g")}, oncemill.ErrKeyReused},
			{"no fingerprint", nil, oncemill.ClaimOptions{Nonce: nonce(1)}, oncemill.ErrInFlight},
			{"settled", func(first *oncemill.Claim) { must(t, first.Settle(within(t), nil, nil)) }, opts, oncemill.ErrSettled},
			{"failed", func(first *oncemill.Claim) { must(t, first.Fail(within(t), "no", nil)) }, opts, oncemill.ErrSettled},
			{"in doubt", func(first *oncemill.Claim) { must(t, first.Doubt(within(t), "lost", nil)) }, opts, oncemill.ErrInDoubt},
			{"in doubt, unnoticed", func(*oncemill.Claim) { f.expire("in doubt, unnoticed") }, opts, oncemill.ErrInDoubt},
			{"in doubt, being asked", func(*oncemill.Claim) { set("in doubt, being asked", `in_doubt_since = clock_timestamp()`) }, opts, oncemill.ErrInDoubt},
			{"too late", func(*oncemill.Claim) {
				set("too late", `claimed_at = claimed_at - interval '30 seconds'`)
			}, opts, oncemill.ErrInFlight},
			{"taken over", func(*oncemill.Claim) {
				f.expire("taken over")
				claim(t, consumer(), "taken over", oncemill.ClaimOptions{KeyLifetime: time.Hour})
			}, opts, oncemill.ErrInFlight},
			{"taken over with the same nonce", func(*oncemill.Claim) {
				f.expire("taken over with the same nonce")
				claim(t, consumer(), "taken over with the same nonce", oncemill.ClaimOptions{KeyLifetime: time.Hour, Nonce: nonce(1), Fingerprint: []byte("f")})
			}, opts, oncemill.ErrInFlight},
		} {
			first := claim(t, consumer(), c.key, opts)
			if c.then != nil {
				c.then(first)
			}
			held := refused(t, consumer(), c.key, c.opts, c.because)
			if held.Token < first.Token() {
				t.Errorf("%s: held by %+v", c.key, held)
			}
		}
		set("too late", `claimed_at = clock_timestamp() - interval '20 seconds'`)
		claim(t, consumer(), "too late", opts) // is in time by now
	})
}

func TestANonceIsOfOneConsumerAndOneKey(t *testing.T) {
	eachWay(t, func(t *testing.T, f *fixture, consumer func() *oncemill.Consumer) {
		opts := oncemill.ClaimOptions{Nonce: nonce(1)}
		tokens := map[int64]bool{}
		for _, c := range []*oncemill.Claim{claim(t, consumer(), "k", opts), claim(t, consumer(), "l", opts), claim(t, consumer().Inbox().Consumer("other"), "k", opts)} {
			tokens[c.Token()] = true
		}
		if len(tokens) != 3 {
			t.Errorf("%d claims, want 3", len(tokens))
		}
	})
}

func TestAReleasedClaimIsClaimedAgainWithItsNonce(t *testing.T) {
	eachWay(t, func(t *testing.T, f *fixture, consumer func() *oncemill.Consumer) {
		opts := oncemill.ClaimOptions{Nonce: nonce(1)}
		first := claim(t, consumer(), "k", opts)
		must(t, first.Release(within(t), "nothing was sent"))
		if second := claim(t, consumer(), "k", opts); second.Token() <= first.Token() {
			t.Errorf("a released claim came back: token %d, then %d", first.Token(), second.Token())
		}
		want(t, first.Settle(within(t), nil, nil), oncemill.ErrFenced)
	})
}

func TestCallsRepeatedAtOnceGetOneClaim(t *testing.T) {
	eachWay(t, func(t *testing.T, f *fixture, consumer func() *oncemill.Consumer) {
		processes := []*oncemill.Consumer{consumer(), consumer(), consumer()}
		opts := oncemill.ClaimOptions{Nonce: nonce(1)}
		var mu sync.Mutex
		tokens := map[int64]int{}
		together(30, func(i int) {
			o, key := opts, fmt.Sprint("k", i%2)
			if i%5 == 4 {
				o.Nonce = nil
			}
			c, err := processes[i%3].Claim(within(t), key, o)
			switch {
			case err == nil && i%5 == 4: // it was the first
				if _, err := processes[i%3].Claim(within(t), key, opts); !errors.Is(err, oncemill.ErrInFlight) {
					t.Errorf("claimed without a nonce, and got %v with one", err)
				}
			case err == nil:
				mu.Lock()
				tokens[c.Token()]++
				mu.Unlock()
			case !errors.Is(err, oncemill.ErrInFlight):
				t.Error(err)
			}
		})
		if len(tokens) > 2 || f.count(`SELECT count(*) FROM oncemill.events WHERE kind = 'claimed'`) != 2 {
			t.Errorf("2 keys were claimed with these tokens: %v", tokens)
		}
	})
}

func TestAShortNonceIsRefused(t *testing.T) {
	eachWay(t, func(t *testing.T, f *fixture, consumer func() *oncemill.Consumer) {
		for _, n := range []int{0, 1, 15} {
			opts := oncemill.ClaimOptions{Nonce: make([]byte, n)}
			_, err := consumer().Claim(within(t), "k", opts)
			wantText(t, err, "ClaimOptions.Nonce", fmt.Sprint(n, " bytes"), "at least 16")
			wantText(t, opts.Check(), "ClaimOptions.Nonce")
		}
		wantText(t, consumer().OnceWith(within(t), "k", oncemill.ClaimOptions{Nonce: nonce(1)}, effect("row")), "Once has no use for them")
		f.wantEffects("row", 0)
	})
}

// A claim that has lost its answer is there for the call that is repeated.
func TestAClaimWithANonceIsNotGivenBack(t *testing.T) {
	t.Parallel()
	for _, batch := range []int{0, 64} {
		for _, driver := range []string{"postgres", "pgx"} {
			t.Run(fmt.Sprint(driver, " ClaimBatch ", batch), func(t *testing.T) {
				t.Parallel()
				f := newFixture(t)
				l := f.losing()
				in := &oncemill.Inbox{DB: f.open(driver, l.url), ClaimBatch: batch}
				c := in.Consumer("test")
				claim(t, c, "warm", oncemill.ClaimOptions{})
				// Each COMMIT is lost, and each shared statement with this key.
				marker := "COMMIT\x00"
				if batch > 0 {
					marker = `"k"`
				}
				opts := oncemill.ClaimOptions{Nonce: nonce(1)}
				l.lose(marker, "after", 1, func() { l.awayFor(7 * time.Second) })
				_, err := c.Claim(within(t), "k", opts)
				want(t, err, oncemill.ErrUnavailable)
				f.wantEvents("k", oncemill.EventClaimed)
				if n := f.count(`SELECT count(*) FROM oncemill.claims WHERE key = 'k'`); n != 1 {
					t.Fatal("the claim was given back, though a repeated call may have got it")
				}
				second := claim(t, f.consumer(), "k", opts)
				must(t, second.Settle(within(t), nil, nil))
				in.DB.Close()
			})
		}
	}
}

func TestAClaimWithANonceIsNotGivenBackWhenItsCallerGoes(t *testing.T) {
	t.Parallel()
	for _, batch := range []int{0, 64} {
		t.Run(fmt.Sprint("ClaimBatch ", batch), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.slowCommit()
			opts := oncemill.ClaimOptions{Nonce: nonce(1)}
			ctx, cancel := context.WithTimeout(within(t), 400*time.Millisecond)
			defer cancel()
			_, err := (&oncemill.Inbox{DB: f.db, ClaimBatch: batch}).Consumer("test").Claim(ctx, "k", opts)
			want(t, err, context.DeadlineExceeded)
			second := claim(t, f.consumer(), "k", opts) // waits for the first one's transaction
			must(t, second.Settle(within(t), nil, nil))
			f.wantEvents("k", oncemill.EventClaimed, oncemill.EventRepeated, oncemill.EventSettled)
		})
	}
}

// What Inbox.ClaimBatch makes of claims without a nonce is nobody's nonce.
func TestNobodyHasTheNonceOfACallWithoutOne(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	in := sharing(f.db)
	for i := range 3 {
		claim(t, in.Consumer("test"), fmt.Sprint(i), oncemill.ClaimOptions{})
	}
	if n := f.count(`SELECT count(DISTINCT nonce) FROM oncemill.claims WHERE nonce IS NOT NULL`); n != 3 {
		t.Errorf("%d nonces of 3 calls", n)
	}
	var stored []byte
	must(t, f.db.QueryRow(`SELECT nonce FROM oncemill.claims WHERE key = '0'`).Scan(&stored))
	for _, n := range [][]byte{nonce(0), stored, make([]byte, 32), []byte(fmt.Sprintf("%x", stored))} {
		refused(t, in.Consumer("test"), "0", oncemill.ClaimOptions{Nonce: n}, oncemill.ErrInFlight)
	}
	refused(t, in.Consumer("test"), "0", oncemill.ClaimOptions{}, oncemill.ErrInFlight)
}
