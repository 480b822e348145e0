package oncemill

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"sync"
	"time"
)

// A Claim is the right to make one effect outside of Postgres, for as long as its
// lease lasts. Get one from Consumer.Claim, make the effect, then call exactly one
// of Settle, Fail, Release and Doubt. A claim that is not ended is in doubt once
// its lease is over.
//
// The methods that end a claim may be called again after an error: what an earlier
// call has done counts as done.
type Claim struct {
	consumer *Consumer
	d        *delivered
	token    int64
	attempt  int
	first    time.Time
	started  time.Time // when it was claimed; zero: the claim is a resolver's
	xid      string    // of the transaction that claimed
	noticed  bool      // it was taken over when nobody knew yet that it was in doubt

	mu       sync.Mutex
	before   bool      // an earlier call had ended it
	deadline time.Time // monotonic: when the effect has to be over
	until    time.Time // when the lease is, by Postgres's clock
	result   []byte
	onSettle []func(ctx context.Context, tx Tx) error
	onFail   []func(ctx context.Context, tx Tx) error
}

// Key returns the idempotency key, as it was given to Consumer.Claim.
func (c *Claim) Key() string { return c.d.key }

// Consumer returns the name in which the key is claimed.
func (c *Claim) Consumer() string { return c.consumer.name }

// Token returns the fencing token of this attempt. None comes twice in a schema. A later
// token is not always the larger one: compare them for equality alone.
func (c *Claim) Token() int64 { return c.token }

// Attempt counts the attempts under this claim, from 1. A claim that was released
// is forgotten, and the next one counts from 1 again.
func (c *Claim) Attempt() int { return c.attempt }

// FirstClaimed returns when the first attempt was claimed, by Postgres's clock.
func (c *Claim) FirstClaimed() time.Time { return c.first }

// Deadline returns when the effect has to be over: somewhat before the lease is.
// It is on this process's monotonic clock, measured from before the claim was sent.
func (c *Claim) Deadline() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.deadline
}

// LeaseUntil returns when the lease ends, by Postgres's clock.
func (c *Claim) LeaseUntil() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.until
}

// EndedBefore reports whether the call that has ended the claim has found that an earlier
// one had done so, whose answer may have been lost.
func (c *Claim) EndedBefore() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.before
}

func (c *Claim) endedBefore() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.before = true
}

// SetActor sets who the events say has ended the claim. Without it, that is
// ClaimOptions.Actor.
func (c *Claim) SetActor(actor string) { c.d.opts.Actor = actor }

// ProviderKey returns the key to give a provider as its idempotency key, or as the
// caller's own id of the effect. It is the same for all attempts at the same key of
// the same consumer, in every process and for ever: "om-" and 40 hexadecimal digits
// that tell nothing of the key.
func (c *Claim) ProviderKey() string { return providerKey(c.consumer.name, c.d.stored) }

// ProviderKey returns what Claim.ProviderKey does, for code that has no claim, such
// as one that asks a provider what became of an effect. Installations that share an
// account at a provider must not have consumers of the same name.
func ProviderKey(consumer, key string) string { return providerKey(consumer, storedKey(key)) }

func providerKey(consumer, stored string) string {
	h := sha256.New()
	h.Write([]byte(consumer))
	h.Write([]byte{0}) // no consumer's name contains it
	h.Write([]byte(stored))
	return "om-" + hex.EncodeToString(h.Sum(nil)[:20])
}

// SetResult sets what Settle stores if it is given no result of its own.
func (c *Claim) SetResult(result []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.result = result
}

// OnSettle has fn run in the transaction that settles the claim: rows that are to be
// there if and only if the effect is. Functions run in the order in which they were
// given, before the one that is given to Settle.
func (c *Claim) OnSettle(fn func(ctx context.Context, tx Tx) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onSettle = append(c.onSettle, fn)
}

// OnFail has fn run in the transaction in which Fail settles the claim: rows that are to
// be there if the effect never will.
func (c *Claim) OnFail(fn func(ctx context.Context, tx Tx) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onFail = append(c.onFail, fn)
}

// Resume returns the claim of a key that was claimed elsewhere, by its token: to be ended
// here, as by a server whose callers claim and settle in two requests. It does not look
// whether there is such a claim; the methods of the claim do. Its Deadline, LeaseUntil,
// Attempt and FirstClaimed are zero. A further attempt is neither released by it, nor by
// GiveBack, which is ErrInDoubt; nor is its lease extended, for its ClaimOptions.KeyLifetime
// is not known here.
func (c *Consumer) Resume(key string, token int64) *Claim {
	return &Claim{consumer: c, token: token, d: &delivered{consumer: c.name, key: key, stored: storedKey(key), opts: ClaimOptions{Lease: c.in.Lease}}}
}

type claimKey struct{}

// ClaimFromContext returns the claim under which a handler makes its effect: what
// middleware.Guard has put into its message's context. Without one, ok is false, and
// a handler should return ErrNoClaim and do nothing.
func ClaimFromContext(ctx context.Context) (claim *Claim, ok bool) {
	claim, ok = ctx.Value(claimKey{}).(*Claim)
	return claim, ok
}

// ContextWithClaim returns ctx with a claim in it, as Guard would hand it to a
// handler.
func ContextWithClaim(ctx context.Context, claim *Claim) context.Context {
	return context.WithValue(ctx, claimKey{}, claim)
}
