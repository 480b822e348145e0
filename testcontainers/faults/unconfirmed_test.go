package faults_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/testcontainers"
)

// A COMMIT that waits for the standby is on the primary's disk already. What ends the wait
// leaves claims that can be read there, and that the standby may never get.
var waysToEndTheWait = map[string]func(*testing.T, *unconfirmed){
	"killed":     killAndStart,
	"terminated": terminateWaiting,
}

func killAndStart(t *testing.T, u *unconfirmed) {
	must(t, u.pair.Primary().Kill())
	must(t, u.pair.Primary().Start(t.Context()))
}

func terminateWaiting(t *testing.T, u *unconfirmed) {
	u.look(t, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = current_database()`)
}

// batches are what Inbox.Batch is in these tests.
var batches = map[string]int{"alone": 1, "in a batch": 16}

// unconfirmed is a pair whose standby is detached.
type unconfirmed struct {
	pair *testcontainers.PostgresPair
	name string  // of the database
	db   *sql.DB // on whichever server takes writes
	keys []string
}

func detached(t *testing.T) *unconfirmed {
	t.Helper()
	u := &unconfirmed{pair: pair(t), keys: []string{"a", "b", "c"}}
	u.name = nameOf(t, testcontainers.DatabaseOn(t, u.pair.Primary()))
	u.db = testenv.Open(t, u.pair.URL(u.name))
	_, err := u.db.ExecContext(t.Context(), `CREATE TABLE effects (key text)`)
	must(t, err)
	must(t, u.pair.Detach(t.Context()))
	return u
}

// withClaims has messages handled whose COMMITs are waited for no longer.
func (u *unconfirmed) withClaims(t *testing.T, endWait func(*testing.T, *unconfirmed)) {
	t.Helper()
	first := u.deliver(t.Context(), 1, u.keys)
	u.awaitWaiting(t, len(u.keys))
	endWait(t, u)
	for range u.keys {
		if a := <-first; !errors.Is(a.err, oncemill.ErrUnavailable) {
			t.Fatalf("Once, whose COMMIT was waited for no longer: %v", a.err)
		}
	}
	if n := u.look(t, `SELECT count(*) FROM oncemill.claims`); n != len(u.keys) {
		t.Fatalf("%d claims can be read on the primary, not %d: the test does not reach what it is for", n, len(u.keys))
	}
}

func (u *unconfirmed) consumer(batch int) *oncemill.Consumer {
	return (&oncemill.Inbox{DB: u.db, Batch: batch, DrainTimeout: limit}).Consumer("billing")
}

// bad is the key of a message that cannot be handled.
const bad = "bad"

var errBad = errors.New("bad message")

// answered is what became of a delivery.
type answered struct {
	key string
	err error
}

// deliver delivers messages at the same time.
func (u *unconfirmed) deliver(ctx context.Context, batch int, keys []string) <-chan answered {
	consumer, answers := u.consumer(batch), make(chan answered, len(keys))
	for _, key := range keys {
		go func() {
			answers <- answered{key, consumer.Once(ctx, key, func(ctx context.Context, tx oncemill.Tx) error {
				if _, err := tx.ExecContext(ctx, `INSERT INTO effects VALUES ($1)`, key); err != nil || key != bad {
					return err
				}
				return errBad
			})}
		}()
	}
	return answers
}

// awaitWaiting returns when so many COMMITs wait for the standby.
func (u *unconfirmed) awaitWaiting(t *testing.T, n int, answers ...<-chan answered) {
	t.Helper()
	eventually(t, "COMMITs wait for the standby", func() bool {
		u.unanswered(t, answers...)
		return u.look(t, `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = current_database()`) >= n
	})
}

// unanswered fails if there is an answer, which the standby has no grounds for yet.
func (u *unconfirmed) unanswered(t *testing.T, answers ...<-chan answered) {
	t.Helper()
	for _, one := range answers {
		select {
		case a := <-one:
			t.Fatalf("%s: the answer is %v, while the standby lacks the claim", a.key, a.err)
		default:
		}
	}
}

// look asks the primary for a number.
func (u *unconfirmed) look(t *testing.T, query string) (n int) {
	t.Helper()
	db, err := sql.Open("postgres", u.pair.Primary().URL(u.name))
	must(t, err)
	defer db.Close()
	must(t, db.QueryRowContext(t.Context(), query).Scan(&n))
	return n
}

// hasEffect fails unless a key has one effect on the server that takes writes.
func (u *unconfirmed) hasEffect(t *testing.T, key string) {
	t.Helper()
	if n := u.look(t, fmt.Sprintf(`SELECT count(*) FROM effects WHERE key = '%s'`, key)); n != 1 {
		t.Errorf("%s was acknowledged, with %d effects", key, n)
	}
}

// Nothing acknowledged is lost, also where a redelivery finds a claim that the standby has
// never received: it is not acknowledged for that.
func TestADuplicateThatTheStandbyLacksIsNotAcknowledged(t *testing.T) {
	t.Parallel()
	for how, endWait := range waysToEndTheWait {
		for which, batch := range batches {
			t.Run(how+" "+which, func(t *testing.T) {
				t.Parallel()
				u := detached(t)
				u.withClaims(t, endWait)
				second := u.deliver(t.Context(), batch, u.keys)
				u.awaitWaiting(t, 1, second)

				// Nor is it when its time is up.
				ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
				defer cancel()
				hasty := u.deliver(ctx, batch, u.keys)
				for range u.keys {
					if a := <-hasty; !errors.Is(a.err, context.DeadlineExceeded) || oncemill.IsHandlerError(a.err) {
						t.Errorf("%s, with a deadline: %v", a.key, a.err)
					}
				}
				u.unanswered(t, second)

				must(t, u.pair.Failover(t.Context()))
				failed := 0
				for range u.keys {
					switch a := <-second; {
					case a.err == nil: // it came to the new primary
						u.hasEffect(t, a.key)
					case !errors.Is(a.err, oncemill.ErrUnavailable) || oncemill.IsHandlerError(a.err):
						t.Errorf("%s, when its claim is lost: %v", a.key, a.err)
					default:
						failed++
					}
				}
				if failed == 0 {
					t.Error("none was told that the database went away")
				}
				third := u.deliver(t.Context(), batch, u.keys)
				for range u.keys {
					a := <-third
					must(t, a.err)
					u.hasEffect(t, a.key)
				}
			})
		}
	}
}

// Once the standby has the claims, their duplicates are acknowledged, and a failover finds
// their effects; also those of new messages in the same batch, of which one fails.
func TestADuplicateIsAcknowledgedWhenTheStandbyHasItsClaim(t *testing.T) {
	t.Parallel()
	for which, batch := range batches {
		t.Run(which, func(t *testing.T) {
			t.Parallel()
			u := detached(t)
			u.withClaims(t, terminateWaiting)
			keys := []string{"new 1", "a", bad, "b", "new 2", "c"}
			second := u.deliver(t.Context(), batch, keys)
			u.awaitWaiting(t, 1) // the bad one need not
			must(t, u.pair.Attach(t.Context()))
			for range keys {
				if a := <-second; (a.key == bad) != errors.Is(a.err, errBad) || a.key != bad && a.err != nil {
					t.Errorf("%s: %v", a.key, a.err)
				}
			}
			must(t, u.pair.Failover(t.Context()))
			for _, key := range keys {
				if key != bad {
					u.hasEffect(t, key)
				}
			}
		})
	}
}
