package client_test

import (
	"context"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oncemill/oncemill/guard/client"
)

// ends are the ways to end a claim, with what the guard answers.
var ends = map[string]struct {
	call   func(ctx context.Context, c *client.Claim) error
	body   string
	answer answer
}{
	"settle": {func(ctx context.Context, c *client.Claim) error {
		return c.Settle(ctx, json.RawMessage(`{"receipt":"r1"}`))
	},
		`{"result":{"receipt":"r1"}}`, ok("already_committed")},
	"settle, without a result": {func(ctx context.Context, c *client.Claim) error { return c.Settle(ctx, nil) }, `{"result":{}}`, ok("committed")},
	"release":                  {func(ctx context.Context, c *client.Claim) error { return c.Release(ctx, "refused") }, `{"reason":"refused"}`, ok("released")},
	"release, for no reason":   {func(ctx context.Context, c *client.Claim) error { return c.Release(ctx, "") }, `{"reason":"no reason was given"}`, ok("released")},
	"fail":                     {func(ctx context.Context, c *client.Claim) error { return c.Fail(ctx, "a\x00b\xff\uFFFD") }, `{"reason":"ab??"}`, ok("failed")},
	"extend":                   {func(ctx context.Context, c *client.Claim) error { return c.Extend(ctx, time.Minute) }, `{"lease_seconds":60}`, ok("extended", `,"lease_until":9.5`)},
	"extend, as before":        {func(ctx context.Context, c *client.Claim) error { return c.Extend(ctx, 0) }, `{"lease_seconds":300}`, ok("extended")},
}

func TestWhatEndsAClaimIsRepeatedAfterALostReply(t *testing.T) {
	t.Parallel()
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			claim, s := claimed(t, lost, problem(503, "unavailable", "away"), says(200, "<html>"), end.answer)
			must(t, end.call(t.Context(), claim))
			step, _, _ := strings.Cut(name, ",")
			wantSteps(t, s, "claim "+strings.Join([]string{step, step, step, step}, " "))
			for _, r := range s.requests()[1:] {
				got, err := json.Marshal(r.body)
				must(t, err)
				if string(got) != end.body || r.path != "/"+step+"/order:7" || r.header.Get("X-SafeAgent-Settlement-Token") != token || r.header.Get("X-SafeAgent-Api-Key") != apiKey {
					t.Errorf("%s was sent to %s with %v", got, r.path, r.header)
				}
			}
		})
	}
}

func TestWhyAClaimCannotBeEnded(t *testing.T) {
	t.Parallel()
	for code, target := range map[string]error{
		"fenced": client.ErrFenced, "settled": client.ErrSettled, "failed": client.ErrFailed, "in_doubt": client.ErrInDoubt, "in_flight": client.ErrInFlight,
	} {
		for name, end := range ends {
			claim, s := claimed(t, problem(409, code, "no longer yours"))
			e := want(t, end.call(t.Context(), claim), target)
			if e.Code != code || e.Status != 409 || e.Detail != "no longer yours" || e.ID != "order:7" || !strings.HasPrefix(name, string(e.Op)) {
				t.Errorf("%s: got %#v", name, e)
			}
			if n := len(s.requests()); n != 2 {
				t.Errorf("%s: %d requests: it was repeated", name, n)
			}
		}
	}
	for status, target := range map[int]error{
		403: client.ErrDenied, 404: client.ErrNotFound, 405: client.ErrInvalid, 409: client.ErrInvalid, 413: client.ErrInvalid, 422: client.ErrInvalid, 302: client.ErrInvalid,
	} {
		claim, s := claimed(t, problem(status, "other", "no"))
		want(t, claim.Settle(t.Context(), nil), target)
		wantSteps(t, s, "claim settle")
	}
}

func TestAClaimIsEndedForAsLongAsOneIsPatient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, s := imagine(0, proceed(), problem(503, "unavailable", "the database is away"))
		c.Patience = 2 * time.Minute // a nonce's lifetime is not the end of it
		claim, err := c.Claim(t.Context(), order())
		must(t, err)
		begun := time.Now()
		want(t, claim.Settle(t.Context(), nil), client.ErrUnavailable)
		if took := time.Since(begun); took < 110*time.Second || took > 2*time.Minute {
			t.Errorf("it was tried for %v", took)
		}
		for i, r := range s.requests()[2:] {
			if pause := r.at.Sub(s.requests()[i+1].at); pause > 3*time.Second {
				t.Errorf("it paused for %v", pause)
			}
		}
	})
}

func TestWhatIsNoResultIsNotSent(t *testing.T) {
	t.Parallel()
	claim, s := claimed(t, ok("committed"))
	want(t, claim.Settle(t.Context(), json.RawMessage("{")), client.ErrInvalid)
	want(t, claim.Extend(t.Context(), time.Millisecond), client.ErrInvalid)
	wantSteps(t, s, "claim")
}

func TestALongReasonIsCut(t *testing.T) {
	t.Parallel()
	claim, s := claimed(t, ok("released"))
	must(t, claim.Release(t.Context(), strings.Repeat("ä", 10000)))
	reason, _ := s.requests()[1].body["reason"].(string)
	if len(reason) > 1010 || !strings.HasSuffix(reason, "ä...") {
		t.Errorf("got a reason of %d bytes, %q", len(reason), reason)
	}
}

func TestExtendMovesTheDeadlineButNotBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _ := imagine(time.Second, proceed(), ok("extended"))
		claim, err := c.Claim(t.Context(), order())
		must(t, err)
		first := claim.Deadline()
		must(t, claim.Extend(t.Context(), time.Second))
		if !claim.Deadline().Equal(first) {
			t.Errorf("the deadline was moved by %v", claim.Deadline().Sub(first))
		}
		must(t, claim.Extend(t.Context(), 10*time.Minute))
		if got := time.Until(claim.Deadline()); got != 594*time.Second {
			t.Errorf("the deadline is in %v", got)
		}
	})
}

func TestAnyIDComesThrough(t *testing.T) {
	t.Parallel()
	for _, id := range []string{
		"order/2026/1", "a b", "a%2Fb", "%", "?q=1&x#y", "..", ".", "/", "a//b/../c", "é ☃", ";", "+", "a\nb", "\"", "\\", "~-_.",
	} {
		c, s := serve(t, func(w http.ResponseWriter, r seen) {
			text, _ := json.Marshal(id)
			says(200, `{"status":"PROCEED","request_id":`+string(text)+`,"settlement_token":"`+token+`"}`)(w, r)
		}, func(w http.ResponseWriter, r seen) {
			text, _ := json.Marshal(id)
			says(200, `{"status":"committed","request_id":`+string(text)+`}`)(w, r)
		})
		c.URL += "/a/prefix/"
		claim, err := c.Claim(t.Context(), client.Request{ID: id, Action: "charge"})
		must(t, err)
		must(t, claim.Settle(t.Context(), nil))
		got := s.requests()[1]
		last := got.uri[strings.LastIndex(got.uri, "/")+1:]
		if got.path != "/a/prefix/settle/"+id || strings.Count(got.uri, "/") != 4 || last == "." || last == ".." || len(got.query) > 0 {
			t.Errorf("the id %q was sent as %s", id, got.uri)
		}
	}
}

func TestSecretsDoNotFollowARedirect(t *testing.T) {
	t.Parallel()
	other := &script{answers: []answer{ok("committed")}}
	elsewhere := httptest.NewServer(other)
	defer elsewhere.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		claim, _ := claimed(t, func(w http.ResponseWriter, _ seen) {
			w.Header().Set("Location", elsewhere.URL)
			w.WriteHeader(status)
		})
		wantText(t, want(t, claim.Settle(t.Context(), nil), client.ErrInvalid), "Client.URL")
	}
	wantSteps(t, other, "")
}

func TestHTTPS(t *testing.T) {
	t.Parallel()
	s := &script{answers: []answer{proceed()}}
	server := httptest.NewUnstartedServer(s)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	c := &client.Client{URL: server.URL, HTTP: server.Client()}
	_, err := c.Claim(t.Context(), order())
	must(t, err)
	c.HTTP = &http.Client{Transport: &http.Transport{}} // which does not know the certificate
	err = c.Check(t.Context())
	want(t, err, client.ErrUnavailable)
	wantText(t, err, "certificate")
}
