package main_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	main "github.com/oncemill/oncemill/cmd/oncemill"
	"github.com/oncemill/oncemill/guard"
	"github.com/oncemill/oncemill/internal/testenv"
)

// write writes a file of its own for a test.
func write(t *testing.T, content string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

func TestGuardDoesNotStart(t *testing.T) {
	t.Parallel()
	url := testenv.PostgresURL(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	cert, key := certificate(t, "old")
	garbage, missing := write(t, "x"), filepath.Join(t.TempDir(), "missing")
	short := write(t, strings.Repeat("s", 31)+"\n")
	for name, test := range map[string]struct {
		flags []string
		code  int
		says  []string
	}{
		"no address":            {nil, 2, []string{"needs --listen", "127.0.0.1:8402"}},
		"all addresses":         {[]string{"--listen", "0.0.0.0:0"}, 2, []string{"--listen is not on loopback", "--tenants", "127.0.0.1"}},
		"an empty host":         {[]string{"--listen", ":0"}, 2, []string{"--listen is not on loopback"}},
		"all IPv6 addresses":    {[]string{"--listen", "[::]:0"}, 2, []string{"--listen is not on loopback"}},
		"mapped IPv4":           {[]string{"--listen", "[::ffff:0.0.0.0]:0"}, 2, []string{"--listen is not on loopback"}},
		"another host":          {[]string{"--listen", "192.0.2.1:0"}, 2, []string{"--listen is not on loopback"}},
		"a name":                {[]string{"--listen", "localhost.example:0"}, 2, []string{"--listen is not on loopback"}},
		"legacy, everywhere":    {[]string{"--listen", ":0", "--legacy"}, 2, []string{"--listen is not on loopback"}},
		"no port":               {[]string{"--listen", "127.0.0.1"}, 2, []string{"--listen", "host:port"}},
		"a port's name":         {[]string{"--listen", "127.0.0.1:http"}, 2, []string{"--listen", "host:port"}},
		"a port too high":       {[]string{"--listen", "127.0.0.1:65536"}, 2, []string{"--listen", "host:port"}},
		"an address in use":     {[]string{"--listen", taken.Addr().String()}, 1, []string{"--listen", "in use", "choose an address that is free"}},
		"half of TLS":           {[]string{"--listen", "127.0.0.1:0", "--tls-cert", cert}, 2, []string{"--tls-cert and --tls-key go together"}},
		"the other half":        {[]string{"--listen", "127.0.0.1:0", "--tls-key", key}, 2, []string{"--tls-cert and --tls-key go together"}},
		"no certificate":        {[]string{"--listen", "127.0.0.1:0", "--tls-cert", missing, "--tls-key", key}, 1, []string{"--tls-cert and --tls-key", missing}},
		"a wrong certificate":   {[]string{"--listen", "127.0.0.1:0", "--tls-cert", garbage, "--tls-key", key}, 1, []string{"--tls-cert and --tls-key", "PEM"}},
		"a short token":         {[]string{"--listen", "127.0.0.1:0", "--audit-token-file", short}, 1, []string{"--audit-token-file", "31 characters", "at least 32"}},
		"an empty token":        {[]string{"--listen", "127.0.0.1:0", "--audit-token-file", write(t, "\n")}, 1, []string{"--audit-token-file", "0 characters"}},
		"no token":              {[]string{"--listen", "127.0.0.1:0", "--audit-token-file", missing}, 1, []string{"--audit-token-file", missing}},
		"no tenants":            {[]string{"--listen", "127.0.0.1:0", "--tenants", missing}, 1, []string{"--tenants: ", "no such file", "oncemill guard tenants add NAME --tenants " + missing + " makes it"}},
		"wrong tenants":         {[]string{"--listen", "127.0.0.1:0", "--tenants", garbage}, 1, []string{"--tenants: ", garbage, "not JSON"}},
		"a lease of nothing":    {[]string{"--listen", "127.0.0.1:0", "--lease", "0s"}, 2, []string{"-lease"}},
		"a lease of no unit":    {[]string{"--listen", "127.0.0.1:0", "--lease", "300"}, 2, []string{"-lease", "unit"}},
		"a lease too short":     {[]string{"--listen", "127.0.0.1:0", "--lease", "0.01s"}, 2, []string{"--lease is 10ms: must be from 100ms to 720h"}},
		"a lease too long":      {[]string{"--listen", "127.0.0.1:0", "--lease", "721h"}, 2, []string{"--lease is 721h0m0s: must be from 100ms to 720h"}},
		"a retention too short": {[]string{"--listen", "127.0.0.1:0", "--retention", "9m59s"}, 2, []string{"--retention is 9m59s: must be at least 10m"}},
		"events too short":      {[]string{"--listen", "127.0.0.1:0", "--event-retention", "1s"}, 2, []string{"--event-retention is 1s: must be at least 10m"}},
		"a retention below 0":   {[]string{"--listen", "127.0.0.1:0", "--retention", "-1h"}, 2, []string{"-retention", "2160h"}},
		"a rest":                {[]string{"--listen", "127.0.0.1:0", "serve"}, 2, []string{"takes flags, or one of tenants"}},
	} {
		code, stdout, stderr := call(t, map[string]string{"ONCEMILL_DATABASE_URL": url}, append([]string{"guard"}, test.flags...)...)
		if code != test.code || stdout != "" || strings.Contains(stderr, strings.Repeat("s", 31)) {
			t.Errorf("%s: exit code %d, want %d; %q, %q", name, code, test.code, stdout, stderr)
		}
		for _, says := range test.says {
			if !strings.Contains(stderr, says) {
				t.Errorf("%s: %q does not say %s", name, stderr, says)
			}
		}
	}
}

func TestGuardDoesNotStartWithoutItsDatabase(t *testing.T) {
	t.Parallel()
	for url, says := range map[string]string{
		"": "--database-url",
		"postgres://app:" + secret + "@127.0.0.1:1/app?sslmode=disable": "refused",
		testenv.EmptyPostgresURL(t):                                     "oncemill migrate",
	} {
		code, _, stderr := call(t, map[string]string{"ONCEMILL_DATABASE_URL": url}, "guard", "--listen", "127.0.0.1:0")
		if code == 0 || !strings.Contains(stderr, says) || strings.Contains(stderr, secret) {
			t.Errorf("exit code %d, %q: want one that says %s", code, stderr, says)
		}
	}
}

// guarding is a guard that runs in this process.
type guarding struct {
	t      *testing.T
	log    *testenv.Log
	addr   string
	client *http.Client
	stop   func() (exitCode int)
}

func startGuard(t *testing.T, url string, flags ...string) *guarding {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	g := &guarding{t: t, log: new(testenv.Log), client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}}
	code := make(chan int, 1)
	go func() {
		code <- main.Run(ctx, append([]string{"guard", "--listen", "127.0.0.1:0", "--database-url", url}, flags...), nil, io.Discard, g.log)
	}()
	g.stop = sync.OnceValue(func() int {
		cancel()
		return <-code
	})
	t.Cleanup(func() {
		if code := g.stop(); code != 0 {
			t.Errorf("exit code %d:\n%s", code, g.log)
		}
	})
	g.addr = guardAddress(t, g.log)
	return g
}

var guardListens = regexp.MustCompile(`guard starts.* listen=(\S+)`)

func guardAddress(t *testing.T, log *testenv.Log) string {
	t.Helper()
	var found []string
	poll(t, func() bool {
		found = guardListens.FindStringSubmatch(log.String())
		return found != nil
	})
	return found[1]
}

// post sends a request, and returns the fields of the answer.
func (g *guarding) post(path, body, token string) (status int, fields map[string]any) {
	g.t.Helper()
	status, fields, err := postTo(g.client, "http://"+g.addr+path, body, token)
	must(g.t, err)
	return status, fields
}

func postTo(client *http.Client, url, body, token string) (status int, fields map[string]any, err error) {
	request, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("X-SafeAgent-Settlement-Token", token)
	response, err := client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	return response.StatusCode, fields, json.NewDecoder(response.Body).Decode(&fields)
}

// claim claims an id that is free, and returns its token.
func (g *guarding) claim(id string) (token string) {
	g.t.Helper()
	status, fields := g.post("/claim", `{"request_id":"`+id+`","action":"x"}`, "")
	token, _ = fields["settlement_token"].(string)
	if status != http.StatusOK || token == "" {
		g.t.Fatalf("%s: got %d %v, want PROCEED", id, status, fields)
	}
	return token
}

func TestGuard(t *testing.T) {
	t.Parallel()
	g := startGuard(t, testenv.PostgresURL(t), "--legacy", "--lease", "1h")
	before := time.Now()
	_, fields := g.post("/claim", `{"request_id":"a","action":"x"}`, "")
	if until, _ := fields["lease_until"].(float64); until < float64(before.Add(59*time.Minute).Unix()) {
		t.Errorf("got %v, want a lease of an hour", fields)
	}
	if status, fields := g.post("/settle/a", `{"result":"r"}`, ""); status != 200 || fields["status"] != "committed" {
		t.Errorf("got %d %v", status, fields)
	}
	if code := g.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, says := range []string{"--legacy: whoever reaches this guard", "guard has stopped"} {
		if !strings.Contains(g.log.String(), says) {
			t.Errorf("the log does not say %q:\n%s", says, g.log)
		}
	}
}

// The bounds of the flags are what the Inbox takes.
func TestGuardTakesTheBoundsOfItsTimes(t *testing.T) {
	t.Parallel()
	url := testenv.PostgresURL(t)
	startGuard(t, url, "--lease", "100ms", "--retention", "10m", "--event-retention", "10m")
	startGuard(t, url, "--lease", "720h")
}

func TestGuardWarnsOfWhatMayBeAnOversight(t *testing.T) {
	t.Parallel()
	url := testenv.PostgresURL(t)
	const open, none, invalid = "--legacy: whoever", "there is no tenant in the file", "no tenant has a valid API key"
	y := newTenancy(t)
	y.key("add", "acme")
	expired := newTenancy(t)
	expired.key("add", "acme")
	expired.key("add", "globex")
	must(t, guard.EditTenants(expired.file, func(tenants []guard.TenantEntry) ([]guard.TenantEntry, error) {
		tenants[0].Keys[0].Expires = tenants[0].Keys[0].Created.Add(-time.Hour)
		tenants[1].Keys = nil
		return tenants, nil
	}))
	for name, test := range map[string]struct {
		flags     []string
		says, not []string
	}{
		"nothing":        {nil, nil, []string{"WARN"}},
		"old clients":    {[]string{"--legacy"}, []string{open + " reaches this guard settles any claim"}, []string{"tenant has"}},
		"of tenants":     {[]string{"--legacy", "--tenants", y.file}, []string{open + " has an API key of a tenant settles any claim of that tenant without a token, and reads its results"}, []string{"reaches this guard", none, invalid}},
		"tenants":        {[]string{"--tenants", y.file}, nil, []string{"WARN"}},
		"no tenants yet": {[]string{"--tenants", write(t, `{"tenants":[]}`)}, []string{none, "oncemill guard tenants add"}, []string{invalid}},
		"no valid keys":  {[]string{"--tenants", expired.file}, []string{invalid, "oncemill guard tenants rotate"}, []string{none}},
	} {
		g := startGuard(t, url, test.flags...)
		for _, says := range test.says {
			if !strings.Contains(g.log.String(), says) {
				t.Errorf("%s: the log does not say %q:\n%s", name, says, g.log)
			}
		}
		for _, not := range test.not {
			if strings.Contains(g.log.String(), not) {
				t.Errorf("%s: the log says %q:\n%s", name, not, g.log)
			}
		}
	}
}

// A guard for others says when their keys travel in the clear.
func TestGuardWithTenantsListensAnywhere(t *testing.T) {
	t.Parallel()
	y := newTenancy(t)
	y.key("add", "acme")
	cert, key := certificate(t, "old")
	g := startGuard(t, testenv.PostgresURL(t), "--listen", "0.0.0.0:0", "--tenants", y.file)
	startGuard(t, testenv.PostgresURL(t), "--listen", "0.0.0.0:0", "--tenants", y.file, "--tls-cert", cert, "--tls-key", key)
	_, port, err := net.SplitHostPort(g.addr)
	must(t, err)
	g.addr = net.JoinHostPort("127.0.0.1", port)
	if status, fields := g.post("/claim", `{"request_id":"a","action":"x"}`, ""); status != 403 || fields["code"] != "api_key" {
		t.Errorf("got %d %v", status, fields)
	}
	if !strings.Contains(g.log.String(), "API keys travel in the clear") {
		t.Errorf("no warning:\n%s", g.log)
	}
}

// A page whose own name points to this machine is of the same origin for its browser.
func TestGuardWithoutTenantsServesThisMachineOnly(t *testing.T) {
	t.Parallel()
	g := startGuard(t, testenv.PostgresURL(t))
	for host, want := range map[string]int{
		g.addr: 200, "localhost": 200, "localhost:1": 200, "[::1]:8402": 200, "evil.example:8402": 403, "evil.example": 403, "127.0.0.1.evil.example": 403,
	} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+g.addr+"/health", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Host = host
		response, err := g.client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(response.Body)
		response.Body.Close()
		if response.StatusCode != want || want == 403 && !strings.Contains(string(text), `"code":"host"`) {
			t.Errorf("Host %s: status %d, want %d: %s", host, response.StatusCode, want, text)
		}
	}
}
