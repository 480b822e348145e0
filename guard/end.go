package guard

import (
	"context"
	"net/http"

	"github.com/oncemill/oncemill"
)

// ended is the answer to what ends a claim, or extends it.
type ended struct {
	Status     string    `json:"status"`
	RequestID  string    `json:"request_id"`
	LeaseUntil timestamp `json:"lease_until,omitzero"`
	Verdict    string    `json:"verdict,omitempty"`
}

// attempt finds the claim that the request's settlement token is of. Without the token, a
// Handler for old clients takes whatever attempt has the id at the moment.
func (c *call) attempt(id ids) (claim *oncemill.Claim, is string, err error) {
	consumer := c.consumer()
	text := c.r.Header.Get(tokenHeader)
	for _, is := range id {
		if token, ok := c.h.secret.verify(consumer.Name(), is, text); ok && wrongID(is) == "" {
			claim := consumer.Resume(is, token)
			claim.SetActor(c.actor)
			return claim, is, nil
		}
	}
	if text == "" && c.h.Legacy {
		return c.anyAttempt(consumer, id)
	}
	return nil, "", errSettlementToken
}

// anyAttempt prefers what is not settled yet, of the readings of a path.
func (c *call) anyAttempt(consumer *oncemill.Consumer, id ids) (claim *oncemill.Claim, is string, err error) {
	for _, reading := range id {
		if wrongID(reading) != "" {
			continue
		}
		held, err := consumer.Held(c.r.Context(), reading)
		switch {
		case err != nil:
			return nil, "", err
		case held == nil, claim != nil && held.Outcome != "":
			continue
		}
		claim, is = consumer.Resume(reading, held.Token), reading
		claim.SetActor(c.actor)
		if held.Outcome == "" {
			return claim, is, nil
		}
	}
	if claim == nil {
		return nil, "", notFound
	}
	return claim, is, nil
}

// settle answers POST /settle/ID: the effect happened.
func (c *call) settle(id ids) error {
	b, err := c.readBody()
	if err != nil {
		return err
	}
	result := b.result(true, !c.h.Legacy)
	if err := b.err(); err != nil {
		return err
	}
	return c.end(id, func(ctx context.Context, claim *oncemill.Claim) (status string, err error) {
		if err := claim.Settle(ctx, result, nil); err != nil {
			return "", err
		}
		if claim.EndedBefore() {
			return "already_committed", nil
		}
		return "committed", nil
	})
}

// end does something to the claim of the request.
func (c *call) end(id ids, do func(ctx context.Context, claim *oncemill.Claim) (status string, err error)) error {
	claim, is, err := c.attempt(id)
	if err != nil {
		return err
	}
	status, err := do(c.r.Context(), claim)
	if err != nil {
		return err
	}
	c.write(http.StatusOK, ended{Status: status, RequestID: is, LeaseUntil: timestamp(claim.LeaseUntil())})
	return nil
}

// readReason reads the body of a request that has a reason, or nothing.
func (c *call) readReason() (reason string, err error) {
	b, err := c.readOptionalBody()
	if err != nil {
		return "", err
	}
	return b.text("reason", false, mostReason), b.err()
}

// release answers POST /release/ID: the effect did not happen, and may be made again.
func (c *call) release(id ids) error {
	reason, err := c.readReason()
	if err != nil {
		return err
	}
	return c.end(id, func(ctx context.Context, claim *oncemill.Claim) (status string, err error) {
		return "released", claim.Release(ctx, reason)
	})
}

// fail answers POST /fail/ID: the effect did not happen, and never will.
func (c *call) fail(id ids) error {
	reason, err := c.readReason()
	if err != nil {
		return err
	}
	return c.end(id, func(ctx context.Context, claim *oncemill.Claim) (status string, err error) {
		return "failed", claim.Fail(ctx, reason, nil)
	})
}

// extend answers POST /extend/ID: another lease, from now on.
func (c *call) extend(id ids) error {
	b, err := c.readOptionalBody()
	if err != nil {
		return err
	}
	lease := b.seconds("lease_seconds", oncemill.LeastLease, oncemill.MostLease)
	if err := b.err(); err != nil {
		return err
	}
	if lease == 0 {
		lease = c.h.Lease
	}
	return c.end(id, func(ctx context.Context, claim *oncemill.Claim) (status string, err error) {
		return "extended", claim.Extend(ctx, lease)
	})
}

// resolve answers POST /resolve/ID: an operator says what became of an effect in doubt.
func (c *call) resolve(id ids) error {
	if !c.operator {
		_, err := c.operates("")
		return err
	}
	b, err := c.readBody()
	if err != nil {
		return err
	}
	asked := b.text("tenant", false, mostID)
	verdict := oncemill.Verdict(b.text("verdict", true, mostReason))
	resolution := oncemill.Resolution{Verdict: verdict, Note: b.text("note", true, mostReason), Result: b.result(false, !c.h.Legacy), Actor: c.actor}
	attempt := b.integer("attempt")
	switch {
	case b.has("verdict") && verdict != oncemill.Happened && verdict != oncemill.NotHappened && verdict != oncemill.Never:
		b.fail("verdict", "enum", "Input should be 'happened', 'not happened' or 'never'")
	case b.has("result") && verdict != oncemill.Happened:
		b.fail("result", "value_error", "goes with the verdict 'happened'")
	case b.has("note") && resolution.Note == "":
		b.fail("note", "string_too_short", "String should say how you know")
	}
	if err := b.err(); err != nil {
		return err
	}
	if c.tenant, err = c.operates(asked); err != nil {
		return err
	}
	return c.resolveAs(id, attempt, resolution)
}

// resolveAs resolves the claim that the path means: where it can mean several, the one
// with the attempt, and without an attempt the first that there is.
func (c *call) resolveAs(id ids, attempt int64, resolution oncemill.Resolution) error {
	if attempt == 0 {
		_, is, err := c.anyAttempt(c.consumer(), id)
		if err != nil {
			return err
		}
		held, err := c.consumer().Held(c.r.Context(), is)
		switch {
		case err != nil:
			return err
		case held == nil:
			return notFound
		}
		id, attempt = ids{is}, held.Token
	}
	failed := error(notFound)
	for _, is := range id {
		if wrongID(is) != "" {
			continue
		}
		// Also a claim that is gone: an earlier call may have released it.
		err := c.consumer().ResolveWith(c.r.Context(), is, attempt, resolution)
		if err == nil {
			c.write(http.StatusOK, ended{Status: "resolved", RequestID: is, Verdict: string(resolution.Verdict)})
			return nil
		}
		if c.asProblem(failed).status == http.StatusNotFound {
			failed = err
		}
	}
	return failed
}
