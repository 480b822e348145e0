package middleware

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/delivery"
	"github.com/oncemill/oncemill/outbox"
)

// ErrNoParking means that a message could not be parked if its effect came to be in
// doubt, since it did not come through a router's handler: nobody knows the topic to
// which it would go back; or the topic is a pattern, and its subscriber does not tell
// which of those that match it is. The effect is not begun.
var ErrNoParking = errors.New("message has no topic to which it could go back if its effect is in doubt: let it come through a router's handler, and not by a pattern")

// Guard is a middleware for handlers with an effect outside of Postgres: an e-mail, a
// card charge, an order at a broker. It claims the message's idempotency key before
// the handler runs, on disk and for the time of a lease, and ends the claim when the
// handler returns:
//
//	nil                          the effect happened. The claim is settled, with what the
//	                             handler has given to Claim.SetResult and Claim.OnSettle
//	                             and with the messages it returned; the message is acked
//	oncemill.DidNotHappen(err)   it certainly did not. The claim is released, and the
//	                             message nacked. Of an attempt that follows a doubtful
//	                             one this proves nothing: the claim stays in doubt
//	oncemill.ProviderAway(err)   the same, and it is not the message's fault
//	oncemill.NeverWill(err)      it never will. The claim is settled as failed, with the
//	                             messages that were returned beside the error; acked
//	any other error, a panic     nobody knows: the claim is in doubt
//
// If the process dies in between, the claim is in doubt once its lease is over. What
// becomes of a claim in doubt is the policy, by what the provider can do:
//
//	KeyLifetime   idempotent: the provider recognises Claim.ProviderKey. The message is
//	              nacked, and the handler runs again with the same key, for as long as
//	              the provider keeps it.
//	Ask           queryable: the provider can be asked. The message is parked, and the
//	              Resolver, which has to run, asks: then the claim is settled, or
//	              released and the message put back into the outbox.
//	neither       opaque: the message is parked, until a person has found out and runs
//	              `oncemill claims resolve`.
//
// With both, the handler runs again while the provider keeps the key, and the Resolver
// asks meanwhile and after that.
//
// To park a message is to store it beside its claim and to acknowledge it. A message
// whose key is settled is acknowledged without being run, which is logged at Info, and
// one whose key is claimed by another attempt is nacked until that is over.
//
// The handler finds the claim with oncemill.ClaimFromContext in the message's context,
// and has to stop when that ends, which is before the lease does. There is no
// transaction in it: rows that belong to the effect go through Claim.OnSettle. It gets
// a copy of the message; acknowledging the copy does nothing.
type Guard struct {
	// Inbox holds the claims. Required.
	Inbox *oncemill.Inbox

	// Consumer is the name in which keys are claimed. "" means the name of the router's
	// handler. Required with Ask, which needs to know it before a message comes.
	Consumer string

	// Key tells a message's idempotency key. nil means ByUUID. Take what identifies the
	// effect, such as an order's number: ByJSON, ByMetadata.
	Key KeyFunc

	// Fingerprint tells what identifies the message's content, such as
	// PayloadFingerprint: see Once.Fingerprint. Set it where a producer could use one key
	// for two effects, such as a charge and its refund: without it the second one is a
	// duplicate, and never made. nil: not compared.
	Fingerprint func(msg *message.Message) ([]byte, error)

	// Outbox writes the messages that the handler returns: see Once.Outbox.
	Outbox *outbox.Publisher

	// Lease is how long a claim lasts. 0 means Inbox.Lease.
	Lease time.Duration

	// Timeout is how long the effect takes at most, by the provider's own timeout. It
	// has to be over before the lease is, with a tenth of the lease (at most 5 seconds)
	// to spare. 0: not known, not checked.
	Timeout time.Duration

	// KeyLifetime is how long the provider recognises Claim.ProviderKey, counted from
	// the first attempt; say less than it promises. 0: it does not.
	KeyLifetime time.Duration

	// Ask finds out what became of an effect. LandingBound, Backoff and Deadline are
	// those of oncemill.Resolver. nil: the provider cannot be asked.
	Ask          func(ctx context.Context, d oncemill.InDoubt) (oncemill.Resolution, error)
	LandingBound time.Duration
	Backoff      time.Duration
	Deadline     time.Duration

	// Probe tells whether the provider is there. After an oncemill.ErrProviderAway the
	// subscriber, if it is one of Oncemill's, fetches nothing until Probe returns nil.
	// nil: it goes on, and each message finds out.
	Probe func(ctx context.Context) error

	// Describe adds to what is kept in the claim's events: Amount, Currency, Payload and
	// Actor of opts. An error is an oncemill.ErrNoKey. Optional.
	Describe func(msg *message.Message, opts *oncemill.ClaimOptions) error
}

// Middleware is a message.HandlerMiddleware. It panics if a field is wrong: see Check.
func (g Guard) Middleware(h message.HandlerFunc) message.HandlerFunc {
	if err := g.Check(); err != nil {
		panic(err.Error())
	}
	g.Outbox = g.Publisher()
	return func(msg *message.Message) ([]*message.Message, error) {
		return nil, g.handle(msg, h)
	}
}

// Check reports what is wrong with the fields, by name. It needs no database.
func (g Guard) Check() error {
	if g.Inbox == nil {
		return errors.New("oncemill: Guard.Inbox is nil: set it to your *oncemill.Inbox")
	}
	if g.Consumer != "" {
		g.Inbox.Consumer(g.Consumer)
	}
	for _, field := range []struct {
		name string
		is   time.Duration
	}{{"Lease", g.Lease}, {"Timeout", g.Timeout}, {"KeyLifetime", g.KeyLifetime}, {"LandingBound", g.LandingBound}, {"Backoff", g.Backoff}, {"Deadline", g.Deadline}} {
		if field.is < 0 {
			return fmt.Errorf("oncemill: Guard.%s is %v: must not be negative", field.name, field.is)
		}
	}
	left, err := g.Inbox.EffectTime(g.Lease)
	switch {
	case err != nil:
		return fmt.Errorf("oncemill: Guard.Lease: %w", err)
	case g.Timeout > left:
		return fmt.Errorf("oncemill: Guard.Timeout is %v, but a lease leaves the effect only %v: set Guard.Lease (or Inbox.Lease) to more than the provider's timeout, with a tenth to spare", g.Timeout, left)
	case g.KeyLifetime > 0 && g.KeyLifetime <= 2*g.lease():
		return fmt.Errorf("oncemill: Guard.KeyLifetime is %v: it must be longer than two leases of %v, or nothing that dies is ever tried again", g.KeyLifetime, g.lease())
	case g.Ask != nil && g.Consumer == "":
		return errors.New("oncemill: Guard.Consumer is empty: with Ask it has to be set, for the Resolver to know whose claims to look at")
	case g.Ask == nil && (g.LandingBound > 0 || g.Backoff > 0 || g.Deadline > 0):
		return errors.New("oncemill: Guard.LandingBound, Backoff and Deadline need Ask: set it to what asks the provider")
	}
	return nil
}

// lease is how long a claim lasts. It needs an Inbox that is set up.
func (g Guard) lease() time.Duration {
	if g.Lease > 0 {
		return g.Lease
	}
	return g.Inbox.Lease
}

// Publisher returns what Guard writes returned messages with: Outbox, or its default.
func (g Guard) Publisher() *outbox.Publisher {
	if g.Outbox != nil {
		return g.Outbox
	}
	return defaultPublisher(g.Inbox)
}

// Resolver returns what asks about this Guard's claims that are in doubt. Run it beside
// the router, in each process or in one. It panics without Ask.
func (g Guard) Resolver() *oncemill.Resolver {
	if g.Ask == nil {
		panic("oncemill: Guard.Resolver: Guard.Ask is nil: set it to what asks the provider")
	}
	if err := g.Check(); err != nil {
		panic(err.Error())
	}
	return &oncemill.Resolver{
		Consumer: g.Inbox.Consumer(g.Consumer), Ask: g.Ask,
		LandingBound: g.LandingBound, Backoff: g.Backoff, Deadline: g.Deadline,
	}
}

// Claim returns what Guard claims for msg, as Once.Claim does.
func (g Guard) Claim(msg *message.Message) (c *oncemill.Consumer, key string, opts oncemill.ClaimOptions, err error) {
	c, key, opts, err = identity{"Guard", g.Inbox, g.Consumer, g.Key, g.Fingerprint}.claim(msg)
	if err == nil {
		err = g.describe(msg, c, &opts)
	}
	return c, key, opts, err
}

func (g Guard) handle(msg *message.Message, h message.HandlerFunc) error {
	if isClosed(msg.Acked()) {
		return fmt.Errorf("oncemill: message %q: %w", msg.UUID, ErrAcked)
	}
	consumer, key, opts, err := g.Claim(msg)
	if err != nil {
		return err
	}
	if opts.Park, err = parkable(msg); err != nil {
		g.delay(msg, time.Second) // it will not help, and should not be tried all the time
		return fmt.Errorf("oncemill: message %q: %w", msg.UUID, err)
	}
	claim, err := consumer.Claim(msg.Context(), key, opts)
	if err != nil {
		return g.refused(msg, consumer, key, err)
	}
	return g.attempt(msg, claim, h)
}

// describe completes what is claimed.
func (g Guard) describe(msg *message.Message, c *oncemill.Consumer, opts *oncemill.ClaimOptions) (err error) {
	defer func() {
		if panicked := recover(); panicked != nil {
			err = fmt.Errorf("panic in Describe: %v", panicked)
		}
		if err != nil {
			err = &oncemill.Error{Op: oncemill.OpKey, Consumer: c.Name(), Err: noKeyOr(msg.Context(), err)}
		}
	}()
	if g.Describe != nil {
		err = g.Describe(msg, opts)
	}
	opts.Lease, opts.KeyLifetime, opts.Patient = g.Lease, g.KeyLifetime, true
	if err == nil {
		err = opts.Check()
	}
	return err
}

// attempt runs the handler under a claim, and ends the claim.
func (g Guard) attempt(msg *message.Message, claim *oncemill.Claim, h message.HandlerFunc) error {
	if err := msg.Context().Err(); err != nil {
		return errors.Join(err, claim.GiveBack(msg.Context(), "the message was given back"))
	}
	produced, err := g.run(msg, claim, h)
	if info, _ := delivery.From(msg.Context()); g.Probe != nil && info.Hold != nil && errors.Is(err, oncemill.ErrProviderAway) {
		info.Hold(g.Probe)
	}
	publishing := func(ctx context.Context, _ oncemill.Tx) error {
		if len(produced) == 0 {
			return nil
		}
		return publish(ctx, g.Outbox, msg, produced)
	}
	switch oncemill.VerdictOf(err) {
	case oncemill.Happened:
		return g.settle(msg, claim, publishing)
	case oncemill.NotHappened:
		if claim.Attempt() > 1 {
			// It tells of this attempt. An earlier one may have had the effect, and
			// releasing the claim would forget since when the provider knows the key.
			return g.doubt(msg, claim, fmt.Errorf("this attempt had no effect, but attempt %d may have had: %w", claim.Attempt()-1, err))
		}
		return g.release(msg, claim, err)
	case oncemill.Never:
		return g.fail(msg, claim, err, publishing)
	}
	return g.doubt(msg, claim, err)
}

// run runs the handler. Nobody knows what a panic has left behind.
func (g Guard) run(msg *message.Message, claim *oncemill.Claim, h message.HandlerFunc) (produced []*message.Message, err error) {
	ctx, cancel := claim.Context(msg.Context())
	defer cancel()
	defer func() {
		if panicked := recover(); panicked != nil {
			g.Inbox.Logger.ErrorContext(ctx, "oncemill: handler panicked", "consumer", claim.Consumer(), "key", claim.Key(),
				"panic", panicked, "stack", string(debug.Stack()))
			produced, err = nil, fmt.Errorf("handler panicked: %v", panicked)
		}
	}()
	produced, err = runOnCopy(ctx, msg, h)
	if err != nil && ctx.Err() != nil && oncemill.VerdictOf(err) == oncemill.Unknown {
		err = fmt.Errorf("%w (%w)", err, context.Cause(ctx))
	}
	return produced, err
}

// settle settles the claim of an effect that happened. What cannot be settled for a
// while, or not at all, is in doubt.
func (g Guard) settle(msg *message.Message, claim *oncemill.Claim, publishing func(context.Context, oncemill.Tx) error) error {
	err := g.persist(msg, claim, func(ctx context.Context) error { return claim.Settle(ctx, nil, publishing) })
	if errors.Is(err, oncemill.ErrResultTooLarge) {
		g.Inbox.Logger.ErrorContext(msg.Context(), "oncemill: a result is too large to be kept; its claim is settled without one",
			"consumer", claim.Consumer(), "key", claim.Key(), "error", err)
		claim.SetResult(nil)
		err = g.persist(msg, claim, func(ctx context.Context) error { return claim.Settle(ctx, nil, publishing) })
	}
	if err == nil || !oncemill.IsHandlerError(err) {
		return err
	}
	// What belongs to the effect cannot be written: only a person, or another attempt
	// with the same provider key, can bring both together.
	return g.doubt(msg, claim, fmt.Errorf("the effect happened, but that could not be settled: %w", err))
}

// persist calls end again and again while the database is away, until the lease is
// about to end, and for some seconds at least.
func (g Guard) persist(msg *message.Message, claim *oncemill.Claim, end func(ctx context.Context) error) error {
	const least, most, patience = 50 * time.Millisecond, time.Second, 5 * time.Second
	ctx := msg.Context()
	// A late settlement is fine, as long as nobody has taken the claim over.
	until := time.Now().Add(patience)
	if deadline := claim.Deadline(); deadline.After(until) {
		until = deadline
	}
	for pause := least; ; pause = min(2*pause, most) {
		err := end(ctx)
		var e *oncemill.Error
		transient := errors.Is(err, oncemill.ErrUnavailable) || oncemill.IsSerialization(err) ||
			errors.As(err, &e) && e.Op == oncemill.OpCommit && !oncemill.IsHandlerError(err)
		if !transient || time.Now().Add(pause).After(until) || !delivery.Sleep(ctx, pause) {
			return err
		}
	}
}

// release frees the key of an effect that certainly did not happen.
func (g Guard) release(msg *message.Message, claim *oncemill.Claim, cause error) error {
	err := g.persist(msg, claim, func(ctx context.Context) error { return claim.Release(ctx, cause.Error()) })
	if err != nil {
		return errors.Join(err, cause)
	}
	return &oncemill.Error{Op: oncemill.OpHandler, Consumer: claim.Consumer(), Key: claim.Key(), Err: cause}
}

// fail settles the claim of an effect that will never happen.
func (g Guard) fail(msg *message.Message, claim *oncemill.Claim, cause error, publishing func(context.Context, oncemill.Tx) error) error {
	err := g.persist(msg, claim, func(ctx context.Context) error { return claim.Fail(ctx, cause.Error(), publishing) })
	if err == nil {
		g.Inbox.Logger.WarnContext(msg.Context(), "oncemill: an effect failed for good", "consumer", claim.Consumer(), "key", claim.Key(), "error", cause)
		return nil
	}
	if oncemill.IsHandlerError(err) {
		return g.doubt(msg, claim, fmt.Errorf("the effect did not happen, but that could not be settled: %w", errors.Join(err, cause)))
	}
	return errors.Join(err, cause)
}

// doubt ends an attempt of which nobody knows whether it had its effect: the message is
// nacked to be tried again, where the provider allows for that, and else parked.
func (g Guard) doubt(msg *message.Message, claim *oncemill.Claim, cause error) error {
	again := g.KeyLifetime > 0
	var park *oncemill.ParkedMessage
	if !again {
		var err error
		if park, err = parkable(msg); err != nil { // handle has looked before
			return errors.Join(err, cause)
		}
	}
	err := g.persist(msg, claim, func(ctx context.Context) error { return claim.Doubt(ctx, cause.Error(), park) })
	switch {
	case err != nil:
		return errors.Join(err, cause)
	case again:
		if info, _ := delivery.From(msg.Context()); info.Delay == nil {
			g.delay(msg, time.Second) // it might be delivered at once, and for hours
		}
		// Not a handler's error: it does not count towards a dead letter.
		return &oncemill.Error{Op: oncemill.OpDoubt, Consumer: claim.Consumer(), Key: claim.Key(), Err: fmt.Errorf("%w: %w", oncemill.ErrInDoubt, cause)}
	}
	g.tell(msg.Context(), claim.Consumer(), claim.Key(), claim.Token(), cause.Error())
	return nil
}
