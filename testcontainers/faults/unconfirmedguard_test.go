package faults_test

import (
	"errors"
	"strconv"
	"testing"

	"github.com/oncemill/oncemill"
)

// A step of a guarded claim that finds itself done by an earlier call is answered when the
// standby has what that has done.
func TestAStepThatTheStandbyLacksIsNotTakenForDone(t *testing.T) {
	t.Parallel()
	for _, claimBatch := range []int{0, 64} {
		t.Run("ClaimBatch "+strconv.Itoa(claimBatch), func(t *testing.T) {
			t.Parallel()
			u := detached(t)
			must(t, u.pair.Attach(t.Context()))
			inbox := &oncemill.Inbox{DB: u.db, ClaimBatch: claimBatch, DrainTimeout: limit}
			consumer := inbox.Consumer("charging")
			paid, err := consumer.Claim(t.Context(), "paid", oncemill.ClaimOptions{})
			must(t, err)
			unpaid, err := consumer.Claim(t.Context(), "unpaid", oncemill.ClaimOptions{})
			must(t, err)
			must(t, u.pair.Detach(t.Context()))

			settled, released := make(chan answered, 1), make(chan answered, 1)
			until := func(is chan<- answered, step func() error) {
				err := step()
				for errors.Is(err, oncemill.ErrUnavailable) { // as it says: call it again
					err = step()
				}
				is <- answered{"the step", err}
			}
			go until(settled, func() error { return paid.Settle(t.Context(), nil, nil) })
			go until(released, func() error { return unpaid.Release(t.Context(), "declined") })
			u.awaitWaiting(t, 2)
			terminateWaiting(t, u)
			eventually(t, "both can be read on the primary", func() bool {
				return u.look(t, `SELECT count(*) FROM oncemill.claims WHERE outcome IS NULL`) == 0
			})
			u.awaitWaiting(t, 2, settled, released) // again

			claimed := make(chan answered, 1)
			go func() {
				_, err := consumer.Claim(t.Context(), "paid", oncemill.ClaimOptions{Patient: true})
				claimed <- answered{"the claim of what is settled", err}
			}()
			u.awaitWaiting(t, 3, settled, released, claimed)

			must(t, u.pair.Attach(t.Context()))
			must(t, (<-settled).err)
			must(t, (<-released).err)
			if a := <-claimed; !errors.Is(a.err, oncemill.ErrSettled) {
				t.Errorf("Claim of what is settled: %v", a.err)
			}
		})
	}
}
