package client_test

import (
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oncemill/oncemill/guard/client"
)

const clean = `{"swept":0,"stale_pending":2,"requires_reconciliation":true,"action":"none"}`

func TestCheck(t *testing.T) {
	t.Parallel()
	c, s := serve(t, says(200, clean), says(200, `{"items":[],"total":0}`))
	must(t, c.Check(t.Context()))
	wantSteps(t, s, "sweep")
	c, s = serve(t, says(200, clean), says(200, `{"items":[],"total":0}`))
	c.AuditToken = "the-operators-token"
	must(t, c.Check(t.Context()))
	wantSteps(t, s, "sweep audit")
	sweep, audit := s.requests()[0].header, s.requests()[1].header
	if sweep.Get("X-SafeAgent-Api-Key") != apiKey || sweep.Get("X-SafeAgent-Audit-Token") != "" {
		t.Errorf("the tenant's key was checked with %v", sweep)
	}
	if audit.Get("X-SafeAgent-Audit-Token") != "the-operators-token" || audit.Get("X-SafeAgent-Api-Key") != "" {
		t.Errorf("the audit token was checked with %v", audit)
	}
}

func TestCheckNamesTheFieldThatIsWrong(t *testing.T) {
	t.Parallel()
	for remedy, c := range map[string]client.Client{
		"Client.URL must begin with http:// or https:// and a host": {},
		"must begin with http:// or https://":                       {URL: "guard.example.com"},
		"http:// or https:// and a host":                            {URL: "https:///claims"},
		"Client.URL must begin":                                     {URL: "ftp://guard"},
		"Client.URL is not a URL":                                   {URL: "http://guard:port\x7f"},
		"Client.URL must have no user, query or fragment":           {URL: "http://me:secret@guard"},
		"no user, query or fragment":                                {URL: "http://guard?key=secret"},
		"query or fragment":                                         {URL: "http://guard#here"},
		"Client.APIKey has characters":                              {URL: "http://guard", APIKey: "secret\n"},
		"Client.AuditToken has characters":                          {URL: "http://guard", AuditToken: "secret "},
		"Client.Timeout is -1s":                                     {URL: "http://guard", Timeout: -time.Second},
		"Client.Patience is -1s":                                    {URL: "http://guard", Patience: -time.Second},
	} {
		err := c.Check(t.Context())
		want(t, err, client.ErrInvalid)
		wantText(t, err, remedy)
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("got %v, with a secret in it", err)
		}
	}
}

func TestCheckNamesWhatTheGuardRefuses(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		answers []answer
		want    error
		remedy  string
	}{
		{[]answer{says(404, `{"detail":"Not Found"}`)}, client.ErrNotFound, "Client.URL is not that of a guard"},
		{[]answer{says(405, `{"detail":"Method Not Allowed"}`)}, client.ErrInvalid, "Method Not Allowed"},
		{[]answer{problem(403, "audit_token", "audit access required")}, client.ErrDenied, "Client.APIKey is not that of a tenant"},
		{[]answer{says(200, clean), problem(403, "audit_token", "audit access required")}, client.ErrDenied, "Client.AuditToken is not the guard's"},
		{[]answer{says(200, "<html>hello</html>")}, client.ErrUnavailable, "not a guard's"},
		{[]answer{says(200, clean), says(200, "{}")}, client.ErrUnavailable, "not a guard's"},
		{[]answer{lost}, client.ErrUnavailable, "does a guard listen at Client.URL?"},
		{[]answer{problem(503, "unavailable", "the database is away")}, client.ErrUnavailable, "the database is away"},
	} {
		c, s := serve(t, test.answers...)
		c.AuditToken = "the-operators-token"
		err := c.Check(t.Context())
		if e := want(t, err, test.want); e.Op != client.OpCheck {
			t.Errorf("got %#v", e)
		}
		wantText(t, err, test.remedy)
		if n := len(s.requests()); n != len(test.answers) {
			t.Errorf("%v: it was tried %d times", err, n)
		}
	}
}

func TestErrorsHaveNoSecrets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		secrets := apiKey + " the-operators-token " + token
		c, _ := imagine(0, proceed(), problem(409, "fenced", "you sent "+secrets),
			says(422, fmt.Sprintf(`{"detail":[{"loc":["header",%q],"msg":%q}]}`, apiKey, secrets)))
		c.APIKey, c.AuditToken = apiKey, "the-operators-token"
		claim, err := c.Claim(t.Context(), order())
		must(t, err)
		errs := []error{claim.Settle(t.Context(), nil), claim.Settle(t.Context(), nil)}
		c.HTTP = &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
			return nil, fmt.Errorf("a proxy did not like\n%s", secrets)
		})}
		errs = append(errs, claim.Settle(t.Context(), nil))
		for _, err := range errs {
			wantText(t, err, "[secret]")
			var e *client.Error
			errors.As(err, &e)
			for _, secret := range append(strings.Fields(secrets), "\n") {
				if strings.Contains(err.Error()+e.Detail+errors.Unwrap(err).Error(), secret) {
					t.Errorf("got %q, with a secret or a line break in it", err)
				}
			}
		}
	})
}

func TestAnErrorSaysWhatIsThere(t *testing.T) {
	t.Parallel()
	for text, e := range map[string]client.Error{
		"oncemill guard: claim order:7: effect has failed for good: declined (HTTP 200)":             {Op: client.OpClaim, ID: "order:7", Status: 200, Reason: "declined", Err: client.ErrFailed},
		"oncemill guard: settle order:7: claim was taken over: no longer yours (HTTP 409 fenced)":    {Op: client.OpSettle, ID: "order:7", Status: 409, Code: "fenced", Detail: "no longer yours", Err: client.ErrFenced},
		"oncemill guard: audit: guard is unavailable":                                                {Op: client.OpAudit, Err: client.ErrUnavailable},
		"oncemill guard: claim " + strings.Repeat("x", 100) + "...: effect is being made by another": {Op: client.OpClaim, ID: strings.Repeat("x", 101), Err: client.ErrInFlight},
	} {
		if e.Error() != text {
			t.Errorf("got  %s\nwant %s", e.Error(), text)
		}
	}
}

// Whoever imports the client gets the client, and nothing else.
func TestOnlyTheStandardLibraryIsImported(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	if got := strings.TrimSpace(string(out)); got != "github.com/oncemill/oncemill/guard/client" {
		t.Errorf("it imports %s", got)
	}
}
