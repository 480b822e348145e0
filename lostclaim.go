package oncemill

import (
	"context"
	"errors"
	"time"

	"github.com/oncemill/oncemill/internal/delivery"
)

// claimAgain claims a key that may have been claimed by this very call, though no answer
// came. Until that is known it tries again: while the database is away, and while another
// transaction has the key, which may be that of the first try.
func (in *Inbox) claimAgain(ctx, work context.Context, c *Consumer, d *delivered) (claim *Claim, err *Error) {
	for end := time.Now().Add(claimPatience); work.Err() == nil; delivery.Sleep(work, claimPause) {
		claim, err = in.claimAlone(ctx, work, c, d)
		if err == nil || !undecided(err) && work.Err() == nil || time.Now().After(end) {
			return claim, err
		}
	}
	if !d.repeatable() {
		in.forgo(ctx, c, d)
	}
	return nil, d.failed(OpClaim, context.Cause(work))
}

// How long Claim tries to find out whether it has claimed a key, and to give that back.
const claimPatience, claimPause = 5 * time.Second, 50 * time.Millisecond

// undecided reports whether an error of Claim leaves open by whom the key is taken, if at
// all.
func undecided(err *Error) bool {
	return errors.Is(err, ErrUnavailable) || errors.Is(err, ErrInFlight) && err.Held == nil
}

// forgo gives back what was claimed for a caller that has gone.
func (in *Inbox) forgo(ctx context.Context, c *Consumer, d *delivered) {
	work, stop := context.WithTimeout(context.WithoutCancel(ctx), claimPatience)
	defer stop()
	for ; work.Err() == nil; delivery.Sleep(work, claimPause) {
		claim, err := in.claimAlone(ctx, work, c, d)
		if err == nil {
			in.giveBack(work, claim, "its caller has gone")
		}
		if err == nil || !undecided(err) {
			return
		}
	}
}
