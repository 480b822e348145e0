package payment

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
)

// DefaultTimeout is how long a request to the provider may take, where
// Charger.Timeout is zero.
const DefaultTimeout = 30 * time.Second

// A Charger is a Watermill handler that makes a payment for each message. It runs
// under middleware.Guard, which claims the message's key and settles, releases or
// leaves in doubt the claim as the Charger's error says.
//
// Set its fields before the first message and leave them alone afterwards.
type Charger struct {
	// Provider makes the payments. Required.
	Provider Provider

	// Timeout is the longest that making one payment may take. The end of the claim's
	// lease wins over it. 0 means DefaultTimeout.
	Timeout time.Duration

	// Decode makes a request of a message. It must make the same one of a message
	// every time. A message that is wrong should give an *InputError; after any other
	// error it is delivered again. nil means DecodeJSON.
	Decode func(msg *message.Message) (Request, error)

	// OnSettle writes rows that are to be there if and only if the payment is: it runs
	// in the transaction that settles the claim, also where Ask has found that the
	// payment happened. key is the message's idempotency key. Optional.
	OnSettle func(ctx context.Context, tx oncemill.Tx, key string, r Receipt) error
}

// Handle is the handler. It returns no messages: to send some, wrap Charge.
func (c *Charger) Handle(msg *message.Message) ([]*message.Message, error) {
	_, err := c.Charge(msg)
	return nil, err
}

// Consume is Handle for Router.AddConsumerHandler.
func (c *Charger) Consume(msg *message.Message) error {
	_, err := c.Charge(msg)
	return err
}

// Charge does what Handle does, and returns the receipt, for a handler that returns
// messages about it:
//
//	func(msg *message.Message) ([]*message.Message, error) {
//		receipt, err := charger.Charge(msg)
//		if err != nil {
//			return nil, err
//		}
//		return []*message.Message{paid(receipt)}, nil
//	}
//
// Messages that are returned beside an error that NeverWill marks are published when
// the claim is settled as failed.
func (c *Charger) Charge(msg *message.Message) (Receipt, error) {
	claim, ok := oncemill.ClaimFromContext(msg.Context())
	if !ok {
		return Receipt{}, oncemill.ErrNoClaim
	}
	receipt, err := c.execute(msg, claim.ProviderKey())
	if err != nil {
		return Receipt{}, ofAllAttempts(err, claim.Attempt())
	}
	result, err := json.Marshal(receipt)
	if err != nil {
		return receipt, fmt.Errorf("payment: it happened, but its receipt %+v cannot be stored: %w", receipt, err)
	}
	claim.SetResult(result)
	if c.OnSettle != nil {
		claim.OnSettle(c.settle(claim.Key(), receipt))
	}
	return receipt, nil
}

func (c *Charger) execute(msg *message.Message, key string) (Receipt, error) {
	if c.Provider == nil {
		return Receipt{}, oncemill.DidNotHappen(errNoProvider)
	}
	r, err := c.decode(msg)
	if err != nil {
		if oncemill.VerdictOf(err) == oncemill.Unknown {
			err = oncemill.DidNotHappen(err) // nothing was sent
		}
		return Receipt{}, err
	}
	ctx, cancel := context.WithTimeout(msg.Context(), c.timeout())
	defer cancel()
	return c.Provider.Execute(ctx, key, r)
}

func (c *Charger) settle(key string, r Receipt) func(context.Context, oncemill.Tx) error {
	return func(ctx context.Context, tx oncemill.Tx) error { return c.OnSettle(ctx, tx, key, r) }
}

func (c *Charger) decode(msg *message.Message) (Request, error) {
	if c.Decode != nil {
		return c.Decode(msg)
	}
	return DecodeJSON(msg)
}

func (c *Charger) timeout() time.Duration {
	if c.Timeout == 0 {
		return DefaultTimeout
	}
	return c.Timeout
}

var errNoProvider = errors.New("payment: Charger.Provider is nil: set it, for example to &payment.Stripe{APIKey: ...}")

// Check reports what is wrong with the fields, and asks the provider whether it
// accepts us, if it has a method Check as Stripe has. Call it before the router runs,
// so that a wrong API key is found by the deployment and not by the messages.
func (c *Charger) Check(ctx context.Context) error {
	if c.Provider == nil {
		return errNoProvider
	}
	if c.Timeout < 0 {
		return fmt.Errorf("payment: Charger.Timeout is %v: must not be negative, 0 means %v", c.Timeout, DefaultTimeout)
	}
	checker, ok := c.Provider.(interface{ Check(context.Context) error })
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout())
	defer cancel()
	return checker.Check(ctx)
}
