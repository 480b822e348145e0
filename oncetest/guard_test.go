package oncetest_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/oncetest"
)

// provider is one that recognises keys, and counts the effects that it has had.
type provider struct {
	mu   sync.Mutex
	keys map[string]bool
	n    int
}

func (p *provider) charge(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if key == "" || !p.keys[key] {
		p.n++
	}
	p.keys[key] = true
}

func (p *provider) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}

func (p *provider) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys, p.n = map[string]bool{}, 0
}

// charging returns the case of a handler that charges under a key, and writes a payment
// when that is settled.
func charging(t *testing.T, driver string, g middleware.Guard, key func(*message.Message, *oncemill.Claim) string) oncetest.Case {
	p := &provider{}
	return oncetest.Case{
		DB: database(t, driver), Message: order(), Guard: &g, Outside: p.count, Reset: p.reset,
		Handler: func(msg *message.Message) ([]*message.Message, error) {
			claim, ok := oncemill.ClaimFromContext(msg.Context())
			if !ok {
				return nil, oncemill.ErrNoClaim
			}
			p.charge(key(msg, claim))
			claim.OnSettle(func(ctx context.Context, tx oncemill.Tx) error {
				_, err := tx.ExecContext(ctx, `INSERT INTO payments (account, order_id) VALUES ('alice', '7')`)
				return err
			})
			return []*message.Message{message.NewMessage(watermill.NewUUID(), nil)}, nil
		},
	}
}

func providerKey(_ *message.Message, claim *oncemill.Claim) string { return claim.ProviderKey() }

// Nothing is reported of handlers whose effects are outside of Postgres and that do what
// Guard asks of them.
func TestASafeHandlerUnderGuardPasses(t *testing.T) {
	t.Parallel()
	for _, driver := range drivers {
		for name, c := range map[string]oncetest.Case{
			"a provider that recognises keys":    charging(t, driver, middleware.Guard{KeyLifetime: 23 * time.Hour}, providerKey),
			"a provider that recognises orders":  charging(t, driver, middleware.Guard{KeyLifetime: 23 * time.Hour}, func(msg *message.Message, _ *oncemill.Claim) string { return msg.UUID }),
			"a provider that recognises nothing": charging(t, driver, middleware.Guard{}, func(*message.Message, *oncemill.Claim) string { return "" }),
		} {
			t.Run(driver+" "+name, func(t *testing.T) {
				t.Parallel()
				for _, report := range check(t, c) {
					t.Error(report)
				}
				for _, table := range []string{"claims", "parked", "events", "outbox"} {
					if n := count(t, c.DB, `SELECT count(*) FROM oncemill.`+table); n != 0 {
						t.Errorf("%d rows are left in %s", n, table)
					}
				}
			})
		}
	}
}

// What is tried again must be under a key that the provider recognises.
func TestAnUnsafeHandlerUnderGuardIsCaught(t *testing.T) {
	t.Parallel()
	random := func(*message.Message, *oncemill.Claim) string { return watermill.NewUUID() }
	c := charging(t, "postgres", middleware.Guard{KeyLifetime: 23 * time.Hour}, random)
	wantReport(t, check(t, c), "happens more than once", "step: the process dies when the handler has returned",
		"step: the process dies before the COMMIT that settles", "Outside counts 2 effects; without a fault 1", "ProviderKey")

	c = charging(t, "postgres", middleware.Guard{KeyLifetime: 23 * time.Hour}, providerKey)
	charge := c.Handler
	c.Handler = func(msg *message.Message) ([]*message.Message, error) {
		if _, err := c.DB.ExecContext(msg.Context(), `UPDATE accounts SET balance = balance - 5 WHERE name = 'alice'`); err != nil {
			return nil, err
		}
		return charge(msg)
	}
	reports := check(t, c)
	wantReport(t, reports, "rows are there although the effect is not settled: table accounts", "OnSettle")
	wantReport(t, reports, "the rows are others after a fault: table accounts", "column balance has 90; without a fault 95")

	c.Once.Key = middleware.ByUUID
	wantReport(t, check(t, c), "fatal:", "Case.Once and Case.Guard are both set")
	c.Once.Key, c.Outside = nil, nil
	wantReport(t, check(t, c), "fatal:", "Case.Outside is nil")
	c = charging(t, "postgres", middleware.Guard{KeyLifetime: time.Second}, providerKey)
	wantReport(t, check(t, c), "fatal:", "Case.Guard", "KeyLifetime")
}
