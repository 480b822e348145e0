package oncemill

import (
	"context"
	"errors"
	"time"

	"github.com/oncemill/oncemill/internal/delivery"
)

// claimAgain claims a key that may have been claimed by this very call, though no answer
// came. Until that is known it tries again: while the database is away, and while another
// transaction has the key, which may be that of the first try. A caller that could have
// repeated its call elsewhere has no use for that when it has gone.
func (in *Inbox) claimAgain(ctx, work context.Context, c *Consumer, d *delivered) (claim *Claim, err *Error) {
	until := work
	if d.repeatable() {
		until = ctx
	}
	for end := time.Now().Add(claimPatience); until.Err() == nil; delivery.Sleep(until, claimPause) {
		claim, err = in.claimAlone(until, work, c, d)
		if err == nil || !undecided(err) && work.Err() == nil || time.Now().After(end) {
			return claim, err
		}
	}
	if !d.repeatable() {
		in.forgo(ctx, c, d)
	}
	gone := context.Cause(work)
	if gone == nil {
		gone = ctx.Err()
	}
	return nil, d.failed(OpClaim, gone)
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
		claim, err := in.claimAlone(work, work, c, d)
		if err == nil {
			in.giveBack(work, claim, "its caller has gone")
		}
		if err == nil || !undecided(err) {
			return
		}
	}
}
