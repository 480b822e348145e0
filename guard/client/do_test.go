package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oncemill/oncemill/guard/client"
)

var errProvider = errors.New("the provider says no")

func receipt(context.Context) (json.RawMessage, error) {
	return json.RawMessage(`{"receipt":"r1"}`), nil
}

// never is an effect that must not be made.
func never(t *testing.T) func(context.Context) (json.RawMessage, error) {
	return func(context.Context) (json.RawMessage, error) {
		t.Error("the effect was made")
		return nil, nil
	}
}

func TestDoSettlesWithTheResult(t *testing.T) {
	t.Parallel()
	c, s := serve(t, proceed(), ok("committed"))
	result, err := c.Do(t.Context(), order(), receipt)
	must(t, err)
	if string(result) != `{"receipt":"r1"}` {
		t.Errorf("got the result %s", result)
	}
	wantSteps(t, s, "claim settle")
	if sent, _ := s.requests()[1].body["result"].(map[string]any); sent["receipt"] != "r1" {
		t.Errorf("it was settled with %v", sent)
	}
}

func TestADuplicateGetsTheStoredResult(t *testing.T) {
	t.Parallel()
	for existing, want := range map[string]string{`,"existing":{"receipt":"r0"}`: `{"receipt":"r0"}`, `,"existing":null`: "", "": ""} {
		c, _ := serve(t, ok("SKIP", existing))
		result, err := c.Do(t.Context(), order(), never(t))
		must(t, err)
		if string(result) != want {
			t.Errorf("got the result %s, want %s", result, want)
		}
	}
}

func TestWithoutAClaimNoEffectIsMade(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		answer answer
		want   error
	}{
		{ok("PENDING"), client.ErrInFlight},
		{ok("PENDING", `,"in_doubt":true`), client.ErrInDoubt},
		{ok("SKIP", `,"failed":true,"reason":"declined"`), client.ErrFailed},
		{problem(409, "key_reused", "conflict"), client.ErrKeyReused},
		{problem(403, "api_key", "tenant API key required"), client.ErrDenied},
		{problem(503, "unavailable", "away"), client.ErrUnavailable},
	} {
		synctest.Test(t, func(t *testing.T) {
			c, _ := imagine(0, test.answer)
			_, err := c.Do(t.Context(), order(), never(t))
			want(t, err, test.want)
		})
	}
}

func TestWhatTheEffectsErrorProves(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		err     error
		steps   string
		inDoubt bool
	}{
		"a plain error":                    {errProvider, "claim", true},
		"it did not happen":                {client.DidNotHappen(errProvider), "claim release", false},
		"wrapped":                          {fmt.Errorf("order 7: %w", client.DidNotHappen(errProvider)), "claim release", false},
		"it never will":                    {client.NeverWill(errProvider), "claim fail", false},
		"two that agree":                   {errors.Join(client.NeverWill(errProvider), client.NeverWill(errProvider)), "claim fail", false},
		"two that do not":                  {errors.Join(client.NeverWill(errProvider), client.DidNotHappen(errProvider)), "claim", true},
		"a plain one among them":           {errors.Join(client.DidNotHappen(errProvider), errProvider), "claim", true},
		"a plain one that says what it is": {fmt.Errorf("%w, so %w", errProvider, client.DidNotHappen(errProvider)), "claim", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			end := ok("released")
			if test.steps == "claim fail" {
				end = ok("failed")
			}
			c, s := serve(t, proceed(), end)
			_, err := c.Do(t.Context(), order(), func(context.Context) (json.RawMessage, error) { return nil, test.err })
			e := want(t, err, errProvider)
			if errors.Is(err, client.ErrInDoubt) != test.inDoubt || e.Op != client.OpEffect {
				t.Errorf("got %v", err)
			}
			wantSteps(t, s, test.steps)
			if r := s.requests(); len(r) > 1 && r[1].body["reason"] != test.err.Error() {
				t.Errorf("the reason is %v", r[1].body)
			}
		})
	}
}

func TestAnErrorOfReleaseIsAddedToTheEffects(t *testing.T) {
	t.Parallel()
	c, _ := serve(t, proceed(), problem(409, "fenced", "no longer yours"))
	_, err := c.Do(t.Context(), order(), func(context.Context) (json.RawMessage, error) { return nil, client.DidNotHappen(nil) })
	want(t, err, client.ErrFenced)
	wantText(t, err, "no reason was given")
}

func TestAPanicLeavesTheClaimAlone(t *testing.T) {
	t.Parallel()
	c, s := serve(t, proceed(), ok("committed"))
	func() {
		defer func() {
			if recover() != errProvider {
				t.Error("the panic did not come through")
			}
		}()
		_, _ = c.Do(t.Context(), order(), func(context.Context) (json.RawMessage, error) { panic(errProvider) })
	}()
	wantSteps(t, s, "claim")
}

// The effect has happened: that is said though nobody waits for it any more.
func TestDoSettlesThoughItsCallerIsGone(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	c, s := serve(t, proceed(), lost, ok("committed"))
	_, err := c.Do(ctx, order(), func(ctx context.Context) (json.RawMessage, error) {
		cancel()
		<-ctx.Done()
		return receipt(ctx)
	})
	must(t, err)
	wantSteps(t, s, "claim settle settle")
}

func TestDoReturnsTheResultBesideAnErrorOfSettle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _ := imagine(0, proceed(), problem(503, "unavailable", "away"))
		result, err := c.Do(t.Context(), order(), receipt)
		if e := want(t, err, client.ErrUnavailable); e.Op != client.OpSettle || string(result) != `{"receipt":"r1"}` {
			t.Errorf("got %s and %v", result, err)
		}
	})
}

func TestTheEffectsContextEndsAtTheDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, s := imagine(time.Second, proceed())
		r := order()
		r.Lease = 100 * time.Second
		begun := time.Now()
		_, err := c.Do(t.Context(), r, func(ctx context.Context) (json.RawMessage, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		want(t, err, client.ErrLeaseOver)
		want(t, err, client.ErrInDoubt)
		want(t, err, context.Canceled)
		if took := time.Since(begun); took != 95*time.Second {
			t.Errorf("it ended after %v", took)
		}
		wantSteps(t, s, "claim")
	})
}

func TestALongEffectExtendsItsClaim(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _ := imagine(0, proceed(), ok("extended"), ok("extended"), ok("committed"))
		r := order()
		r.Lease = 10 * time.Second
		_, err := c.Do(t.Context(), r, func(ctx context.Context) (json.RawMessage, error) {
			claim, ok := client.ClaimFromContext(ctx)
			if !ok {
				return nil, errors.New("there is no claim in the context")
			}
			for range 2 {
				time.Sleep(8 * time.Second)
				if err := claim.Extend(ctx, 0); err != nil {
					return nil, err
				}
			}
			time.Sleep(9*time.Second - 1)
			return nil, ctx.Err()
		})
		must(t, err)
	})
	if _, ok := client.ClaimFromContext(t.Context()); ok {
		t.Error("there is a claim outside of Do")
	}
}
