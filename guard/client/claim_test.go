package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oncemill/oncemill/guard/client"
)

func TestALostProceedComesBack(t *testing.T) {
	t.Parallel()
	c, s := serve(t, lost, proceed())
	claim, err := c.Claim(t.Context(), order())
	must(t, err)
	if claim.ID() != "order:7" {
		t.Errorf("got a claim of %q", claim.ID())
	}
	tries := s.requests()
	if len(tries) != 2 || tries[0].body["nonce"] != tries[1].body["nonce"] {
		t.Fatalf("got the claims %v, want two with one nonce", tries)
	}
	nonce, _ := tries[0].body["nonce"].(string)
	if !regexp.MustCompile(`^[A-Za-z0-9_-]{22,128}$`).MatchString(nonce) {
		t.Errorf("got the nonce %q", nonce)
	}
	_, err = c.Claim(t.Context(), order())
	must(t, err)
	if tries = s.requests(); tries[2].body["nonce"] == nonce {
		t.Error("two claims have one nonce")
	}
}

// Each of these may be the work of a guard that has made the claim, or of a proxy.
func TestAClaimIsRepeatedWithItsNonceAfterWhatIsNoAnswer(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]answer{
		"no answer":           lost,
		"none in time":        hangs,
		"unavailable":         problem(http.StatusServiceUnavailable, "unavailable", "the database is away"),
		"rate limited":        problem(http.StatusTooManyRequests, "rate_limited", "too many"),
		"a proxy's 502":       says(http.StatusBadGateway, "<html>bad gateway</html>"),
		"a proxy's 500":       says(http.StatusInternalServerError, ""),
		"a page":              says(http.StatusOK, "<html>please log in</html>"),
		"nothing":             says(http.StatusOK, ""),
		"204":                 says(http.StatusNoContent, ""),
		"null":                says(http.StatusOK, "null"),
		"another id":          says(http.StatusOK, `{"status":"PROCEED","request_id":"order:8","settlement_token":"`+token+`"}`),
		"no id":               says(http.StatusOK, `{"status":"SKIP"}`),
		"no token":            ok("PROCEED"),
		"a token of no form":  ok("PROCEED", `,"settlement_token":"a\nb"`),
		"an unknown status":   ok("MAYBE"),
		"a status of no form": says(http.StatusOK, `{"status":["SKIP"],"request_id":"order:7"}`),
		"half an answer": func(w http.ResponseWriter, _ seen) {
			w.Header().Set("Content-Length", "200")
			_, _ = w.Write([]byte(`{"status":"SKIP","request_id":"order:7"}`))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, s := serve(t, first, proceed())
			if name == "none in time" {
				c.Timeout = 50 * time.Millisecond
			}
			_, err := c.Claim(t.Context(), order())
			must(t, err)
			tries := s.requests()
			if len(tries) != 2 || tries[0].body["nonce"] != tries[1].body["nonce"] {
				t.Fatalf("got the claims %v, want two with one nonce", tries)
			}
		})
	}
}

func TestWhatAClaimAnswers(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		answer answer
		want   error
		check  func(e *client.Error) bool
	}{
		"settled": {ok("SKIP", `,"existing":{"receipt":"r1"}`), client.ErrSettled, func(e *client.Error) bool {
			return string(e.Result) == `{"receipt":"r1"}` && e.Status == 200
		}},
		"settled, without a result": {ok("SKIP", `,"existing":null`), client.ErrSettled, func(e *client.Error) bool { return e.Result == nil }},
		"failed":                    {ok("SKIP", `,"failed":true,"reason":"declined"`), client.ErrFailed, func(e *client.Error) bool { return e.Reason == "declined" }},
		"in flight":                 {ok("PENDING"), client.ErrInFlight, nil},
		"in doubt": {ok("PENDING", `,"in_doubt":true,"reason":"its lease was over"`), client.ErrInDoubt, func(e *client.Error) bool {
			return e.Reason == "its lease was over"
		}},
		"another fingerprint": {problem(409, "key_reused", "conflict"), client.ErrKeyReused, func(e *client.Error) bool {
			return e.Status == 409 && e.Code == "key_reused" && e.Detail == "conflict"
		}},
		"no tenant's key": {problem(403, "api_key", "tenant API key required"), client.ErrDenied, nil},
		"a wrong field": {says(422, `{"detail":[{"type":"missing","loc":["body","request_id"],"msg":"Field required"}],"code":"invalid","status":422}`),
			client.ErrInvalid, func(e *client.Error) bool { return e.Detail == "body.request_id: Field required" }},
		"too large":     {problem(413, "too_large", "too large"), client.ErrInvalid, nil},
		"a wrong path":  {says(404, `{"detail":"Not Found"}`), client.ErrNotFound, nil},
		"a proxy's 401": {says(401, "<html>who are you</html>"), client.ErrDenied, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, s := serve(t, test.answer)
			_, err := c.Claim(t.Context(), order())
			e := want(t, err, test.want)
			if e.Op != client.OpClaim || e.ID != "order:7" || test.check != nil && !test.check(e) {
				t.Errorf("got %#v", e)
			}
			wantSteps(t, s, "claim")
		})
	}
}

func TestAllOfARequestIsSent(t *testing.T) {
	t.Parallel()
	c, s := serve(t, proceed())
	r := client.Request{
		ID: "order:7", Action: "buy", Agent: "bot-1", Amount: "452.00", Currency: "USD",
		Payload: json.RawMessage(`{"symbol":"TQQQ"}`), Fingerprint: "f1", Lease: 1500 * time.Millisecond,
	}
	_, err := c.Claim(t.Context(), r)
	must(t, err)
	got := s.requests()[0]
	delete(got.body, "nonce")
	sent := map[string]any{
		"request_id": "order:7", "action": "buy", "agent_id": "bot-1", "amount": "452.00", "currency": "USD",
		"fingerprint": "f1", "lease_seconds": 1.5, "replay": true,
	}
	if payload, _ := got.body["payload"].(map[string]any); payload["symbol"] != "TQQQ" {
		t.Errorf("got the payload %v", got.body["payload"])
	}
	delete(got.body, "payload")
	if !maps.Equal(got.body, sent) || got.header.Get("X-SafeAgent-Api-Key") != apiKey || got.method != http.MethodPost {
		t.Errorf("got %s %v with %v", got.method, got.body, got.header)
	}
}

func TestAWrongRequestIsNotSent(t *testing.T) {
	t.Parallel()
	c, s := serve(t, proceed())
	for field, r := range map[string]client.Request{
		"Request.ID is empty":                           {Action: "charge"},
		"Request.ID has 513 bytes":                      {ID: strings.Repeat("x", 513), Action: "charge"},
		"Request.ID must be UTF-8":                      {ID: "a\x00", Action: "charge"},
		"UTF-8 without NUL and U+FFFD":                  {ID: "a\xff", Action: "charge"},
		"without NUL and U+FFFD":                        {ID: "a\uFFFD", Action: "charge"},
		"Request.ID begins with oncemill:":              {ID: "oncemill:1", Action: "charge"},
		"begins with oncemill: or test:":                {ID: "test:1", Action: "charge"},
		"Request.Action is empty":                       {ID: "a"},
		"Request.Payload is not JSON":                   {ID: "a", Action: "charge", Payload: json.RawMessage("{")},
		"Request.Lease is 1ms: must be from 100ms":      {ID: "a", Action: "charge", Lease: time.Millisecond},
		"Request.Lease is -1s: must be from 100ms":      {ID: "a", Action: "charge", Lease: -time.Second},
		"Request.Lease is 721h0m0s: must be from 100ms": {ID: "a", Action: "charge", Lease: 721 * time.Hour},
	} {
		_, err := c.Claim(t.Context(), r)
		want(t, err, client.ErrInvalid)
		wantText(t, err, field)
	}
	c.URL = "guard.example.com"
	_, err := c.Claim(t.Context(), order())
	want(t, err, client.ErrInvalid)
	wantSteps(t, s, "")
}

// The guard forgets the nonce 30 seconds after the claim. A repeat from then on could
// only be told that the id is taken, by nobody knows whom.
func TestAClaimIsNotRepeatedAfterItsNonceIsForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, s := imagine(0, problem(503, "unavailable", "the database is away"))
		c.Patience = time.Hour
		begun := time.Now()
		_, err := c.Claim(t.Context(), order())
		wantText(t, want(t, err, client.ErrUnavailable), "the database is away", "HTTP 503 unavailable")
		tries := s.requests()
		if last := tries[len(tries)-1].at.Sub(begun); last >= 30*time.Second || last < 25*time.Second {
			t.Errorf("the last try was after %v", last)
		}
		if len(tries) < 10 || len(tries) > 60 {
			t.Errorf("there were %d tries in 30 seconds", len(tries))
		}
	})
}

// A guard that takes a try and never answers does not keep it open past that either.
func TestATryDoesNotOutliveTheNonce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _ := imagine(time.Hour, proceed())
		c.Timeout, c.Patience = time.Hour, time.Hour
		begun := time.Now()
		_, err := c.Claim(t.Context(), order())
		want(t, err, client.ErrUnavailable)
		if took := time.Since(begun); took != 30*time.Second {
			t.Errorf("it took %v", took)
		}
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, as if the caller's context had ended", err)
		}
	})
}

func TestAPatienceEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _ := imagine(0, problem(503, "unavailable", "the database is away"))
		c.Patience = 5 * time.Second
		begun := time.Now()
		_, err := c.Claim(t.Context(), order())
		want(t, err, client.ErrUnavailable)
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func limited(seconds string) answer {
	return func(w http.ResponseWriter, r seen) {
		w.Header().Set("Retry-After", seconds)
		problem(429, "rate_limited", "too many requests")(w, r)
	}
}

func TestRetryAfterIsHonoured(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, s := imagine(0, limited("7"), proceed())
		_, err := c.Claim(t.Context(), order())
		must(t, err)
		tries := s.requests()
		if pause := tries[1].at.Sub(tries[0].at); pause < 7*time.Second || pause > 8*time.Second {
			t.Errorf("it waited for %v", pause)
		}
	})
}

func TestNobodyWaitsForARetryThatWouldBeTooLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, s := imagine(0, limited("60"))
		begun := time.Now()
		_, err := c.Claim(t.Context(), order())
		if e := want(t, err, client.ErrRateLimited); e.RetryAfter != time.Minute || time.Since(begun) != 0 {
			t.Errorf("got %#v after %v", e, time.Since(begun))
		}
		wantSteps(t, s, "claim")
	})
}

func TestTheDeadlineIsMeasuredFromBeforeTheClaim(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _ := imagine(2*time.Second, proceed())
		for lease, margin := range map[time.Duration]time.Duration{10 * time.Second: time.Second, 10 * time.Minute: 5 * time.Second} {
			r := order()
			r.Lease = lease
			begun := time.Now()
			claim, err := c.Claim(t.Context(), r)
			must(t, err)
			if got := claim.Deadline().Sub(begun); got != lease-margin {
				t.Errorf("a lease of %v has its deadline after %v", lease, got)
			}
		}
	})
}

// The first try may have made the claim, or the second. By the first the lease is nearly
// over.
func TestAClaimThatTookLongToGetIsExtended(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, s := imagine(time.Second, problem(503, "unavailable", "away"), proceed(), ok("extended", `,"lease_until":9.5`))
		r := order()
		r.Lease = 3 * time.Second
		claim, err := c.Claim(t.Context(), r)
		must(t, err)
		wantSteps(t, s, "claim claim extend")
		extend := s.requests()[2]
		if extend.body["lease_seconds"] != 3.0 || extend.header.Get("X-SafeAgent-Settlement-Token") != token {
			t.Errorf("it was extended with %v", extend)
		}
		// It was sent a second before it came.
		if got := claim.Deadline().Sub(extend.at); got != 1700*time.Millisecond {
			t.Errorf("the deadline is %v after the extension has come", got)
		}
	})
}

func TestAClaimThatTookItsWholeLeaseIsNone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, s := imagine(0, problem(503, "unavailable", "away"), func(w http.ResponseWriter, r seen) {
			time.Sleep(5 * time.Second)
			proceed()(w, r)
		}, problem(409, "in_doubt", "in doubt"))
		r := order()
		r.Lease = 3 * time.Second
		_, err := c.Claim(t.Context(), r)
		want(t, err, client.ErrLeaseOver)
		want(t, err, client.ErrInDoubt)
		wantSteps(t, s, "claim claim extend release")
	})
}

func TestAClaimWhoseCallerStoppedWaitingIsGivenBack(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	c, s := serve(t, func(w http.ResponseWriter, r seen) {
		cancel() // the guard has it, and is about to claim
		hangs(w, r)
	}, proceed(), ok("released"))
	_, err := c.Claim(ctx, order())
	want(t, err, context.Canceled)
	want(t, err, client.ErrUnavailable)
	wantSteps(t, s, "claim claim release")
	got := s.requests()
	if got[0].body["nonce"] != got[1].body["nonce"] || got[2].header.Get("X-SafeAgent-Settlement-Token") != token {
		t.Errorf("got %v", got)
	}
}

func TestWithAnEndedContextNothingIsSent(t *testing.T) {
	t.Parallel()
	c, s := serve(t, proceed())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := c.Claim(ctx, order())
	want(t, err, context.Canceled)
	wantSteps(t, s, "")
}

// What the guard said is worth more than that the time was over then.
func TestTheErrorSaysWhatTheGuardSaidLast(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	c, _ := serve(t, problem(503, "unavailable", "the database is read-only"), func(w http.ResponseWriter, r seen) {
		cancel()
		hangs(w, r)
	}, lost)
	_, err := c.Claim(ctx, order())
	e := want(t, err, context.Canceled)
	if e.Status != 503 || !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	wantText(t, err, "the database is read-only")
}
