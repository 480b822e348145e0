package main_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	main "github.com/oncemill/oncemill/examples/bench-guard"
)

// The servers may answer as they like, as long as it is HTTP/1.1.
func TestACallerReadsWhatServersAnswer(t *testing.T) {
	t.Parallel()
	const token = "0123456789abcdef"
	var chunked atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if chunked.Load() {
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
		}
		switch {
		case r.URL.Path == "/claim":
			_, _ = w.Write([]byte(`{"status": "PROCEED","request_id":"a","settlement_token":"` + token + `"}`))
		case r.Header.Get("X-SafeAgent-Settlement-Token") == token:
			_, _ = w.Write([]byte(`{"status":"committed"` + strings.Repeat(" ", 10000) + `}`))
		default:
			http.Error(w, "settlement capability required", http.StatusForbidden)
		}
	}))
	defer server.Close()
	c, err := main.Dial(t.Context(), server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, is := range []bool{false, true, false} {
		chunked.Store(is)
		got, err := c.Claim("a")
		if err != nil || got != token {
			t.Fatalf("got %q, %v", got, err)
		}
		if err := c.Settle("a", token); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Settle("a", "other"); err == nil || !strings.Contains(err.Error(), "403") || !strings.Contains(err.Error(), "capability") {
		t.Errorf("got error %v", err)
	}
}

// A server that has lost a row, or has one too many, or left one unsettled, is found out.
func TestSafeAgentsRowsAreCounted(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		all, committed, pending string
		ok                      bool
	}{
		{"3", "3", "0", true}, {"2", "2", "0", false}, {"4", "3", "0", false}, {"4", "4", "0", false}, {"3", "2", "1", false}, {"null", "3", "0", false},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			total := map[string]string{"": test.all, "COMMITTED": test.committed, "PENDING": test.pending}[r.FormValue("status")]
			if r.FormValue("action") != "turn" || r.Header.Get("X-SafeAgent-Audit-Token") != "audit" {
				total = "-1"
			}
			_, _ = w.Write([]byte(`{"items":[],"total":` + total + `}`))
		}))
		err := main.CheckSafeAgent(t.Context(), server.Listener.Addr().String(), "audit", 3)
		server.Close()
		if (err == nil) != test.ok {
			t.Errorf("%+v: got error %v", test, err)
		}
	}
}
