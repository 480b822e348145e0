package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// mostReason is how many bytes of a reason are sent.
const mostReason = 1000

// Settle ends the claim: the effect happened. result, a JSON object of at most 64 KiB, is
// kept for those who claim the id later; nil stands for an empty one. It is repeated for
// as long as ctx and Client.Patience allow: give it a context that does not end with the
// effect's.
//
// A late Settle is fine as long as nobody has taken the claim over. Errors are an *Error
// with ErrFenced, ErrFailed or ErrSettled if it was ended otherwise, ErrInDoubt if only an
// operator or a resolver may end it now, ErrInvalid for a result that the guard does not
// take, or ErrUnavailable, after which the claim may be settled or not.
func (c *Claim) Settle(ctx context.Context, result json.RawMessage) error {
	if result == nil {
		result = json.RawMessage(`{}`)
	}
	return c.end(ctx, OpSettle, struct {
		Result json.RawMessage `json:"result"`
	}{result}, "committed", "already_committed")
}

// Release ends the claim: the effect certainly did not happen, and the id is free again.
// Errors are those of Settle.
func (c *Claim) Release(ctx context.Context, reason string) error {
	return c.end(ctx, OpRelease, because{cut(reason)}, "released")
}

// Fail ends the claim: the effect did not happen and never will. Who claims the id later
// gets ErrFailed with the reason. Errors are those of Settle.
func (c *Claim) Fail(ctx context.Context, reason string) error {
	return c.end(ctx, OpFail, because{cut(reason)}, "failed")
}

// Extend moves the lease's end to lease from now; 0 means as long as it was. It does not
// bring it forward. Errors are those of Settle, and ErrInDoubt after the lease.
func (c *Claim) Extend(ctx context.Context, lease time.Duration) error {
	lease = orDefault(lease, c.lease)
	if err := checkLease("lease", lease); err != nil {
		return failed(OpExtend, c.id, fmt.Errorf("%w: %w", ErrInvalid, err))
	}
	body := struct {
		Lease float64 `json:"lease_seconds"`
	}{lease.Seconds()}
	sent, err := c.send(ctx, OpExtend, body, "extended")
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if deadline := sent.Add(lease - leaseMargin(lease)); deadline.After(c.deadline) {
		c.deadline = deadline
	}
	return nil
}

func (c *Claim) end(ctx context.Context, op Op, body any, statuses ...string) error {
	if _, err := c.send(ctx, op, body, statuses...); err != nil {
		return err
	}
	return nil
}

// send sends one step of the claim, and returns when the try began that was answered.
func (c *Claim) send(ctx context.Context, op Op, body any, statuses ...string) (sent time.Time, failure *Error) {
	text, err := json.Marshal(body)
	if err != nil {
		return sent, failed(op, c.id, fmt.Errorf("%w: %w", ErrInvalid, errors.New("the result is not JSON")))
	}
	var a answer
	r := request{
		op: op, id: c.id, method: http.MethodPost, path: pathOf(string(op), c.id), token: c.token, body: text,
		accept: a.into(c.id, statuses...),
	}
	failure = c.client.repeat(ctx, &r, time.Now().Add(c.client.patience()))
	return r.sent, failure
}

type because struct {
	Reason string `json:"reason"`
}

// cut makes any text fit for a reason, which has no NUL and no U+FFFD.
func cut(reason string) string {
	reason = strings.NewReplacer("\x00", "", "\uFFFD", "?").Replace(strings.ToValidUTF8(reason, "?"))
	if len(reason) > mostReason {
		reason = strings.ToValidUTF8(reason[:mostReason], "") + "..."
	}
	if reason == "" {
		reason = "no reason was given"
	}
	return reason
}
