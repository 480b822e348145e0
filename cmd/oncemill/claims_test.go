package main_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	main "github.com/oncemill/oncemill/cmd/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
)

// doubtful is a database with a consumer whose claims the test brings into doubt.
type doubtful struct {
	t        *testing.T
	env      map[string]string
	consumer *oncemill.Consumer
}

func newDoubtful(t *testing.T) *doubtful {
	t.Helper()
	url := testenv.PostgresURL(t)
	db := testenv.Open(t, url)
	return &doubtful{t, map[string]string{"ONCEMILL_DATABASE_URL": url}, (&oncemill.Inbox{DB: db}).Consumer("payments")}
}

func (d *doubtful) doubt(key string) *oncemill.Claim {
	d.t.Helper()
	claim, err := d.consumer.Claim(context.Background(), key, oncemill.ClaimOptions{Amount: "12.50", Currency: "EUR"})
	must(d.t, err)
	must(d.t, claim.Doubt(context.Background(), "reply lost\nafter all", &oncemill.ParkedMessage{Topic: "orders", UUID: key}))
	return claim
}

// run runs the program and wants it to succeed.
func (d *doubtful) run(args ...string) (stdout string) {
	d.t.Helper()
	code, stdout, stderr := call(d.t, d.env, args...)
	if code != 0 {
		d.t.Fatalf("%v: exit code %d, %s", args, code, stderr)
	}
	return stdout
}

func (d *doubtful) wantIn(text string, parts ...string) {
	d.t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			d.t.Errorf("no %q in:\n%s", part, text)
		}
	}
}

func TestClaimsListsWhatIsInDoubt(t *testing.T) {
	t.Parallel()
	d := newDoubtful(t)
	d.wantIn(d.run("claims", "--in-doubt"), "nothing is in doubt")
	claim := d.doubt("order 7")
	d.wantIn(d.run("claims", "--in-doubt"), "payments", `"order 7"`, "12.50 EUR", "parked", claim.ProviderKey(), "reply lost after all")
	d.wantIn(d.run("claims", "--in-doubt", "--consumer", "others"), "nothing of consumer others is in doubt: it has no claims and no events at all")
	var one struct {
		Key         string
		ProviderKey string `json:"provider_key"`
		Message     struct{ Topic string }
	}
	must(t, json.Unmarshal([]byte(d.run("claims", "--in-doubt", "--json")), &one))
	if one.Key != "order 7" || one.ProviderKey != claim.ProviderKey() || one.Message.Topic != "orders" {
		t.Errorf("got %+v", one)
	}
}

func TestClaimsResolveSaysWhatBecameOfIt(t *testing.T) {
	t.Parallel()
	d := newDoubtful(t)
	for _, key := range []string{"a", "--b", "c"} {
		d.doubt(key)
	}
	d.wantIn(d.run("claims", "resolve", "payments", "a", "--happened", "--note", "saw it", "--result", "pi_1", "--by", "ann"), "payments a: settled")
	d.wantIn(d.run("claims", "resolve", "--not-happened", "--note", "asked", "--", "payments", "--b"), "released; its message was parked, and is in the outbox now")
	d.wantIn(d.run("claims", "resolve", "payments", "--never", "--note", "withdrawn", "c"), "settled as failed")
	d.wantIn(d.run("claims", "--in-doubt"), "nothing is in doubt")
	d.wantIn(d.run("claims", "--in-doubt", "--consumer", "payments"), "nothing of consumer payments is in doubt\n")
	d.wantIn(d.run("claims", "events", "payments", "a"), "EVENT", "claimed", "in doubt", "settled", "ann", "resolved: happened; saw it")
	for key, outcome := range map[string]oncemill.Outcome{"a": oncemill.Settled, "c": oncemill.Failed} {
		held, err := d.consumer.Held(context.Background(), key)
		must(t, err)
		if held == nil || held.Outcome != outcome {
			t.Errorf("%s: got %+v, want %s", key, held, outcome)
		}
	}
	for _, key := range []string{"a", "--b", "c"} {
		events, err := d.consumer.Events(context.Background(), key, 0, 100)
		must(t, err)
		for _, e := range events {
			if e.Amount != "12.50" || e.Currency != "EUR" {
				t.Errorf("%s: the event %q has the amount %q", key, e.Kind, e.Amount)
			}
		}
	}
}

func TestClaimsResolveNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	d := newDoubtful(t)
	claim := d.doubt("in doubt")
	must(t, d.consumer.Resolve(context.Background(), "in doubt", claim.Token(), oncemill.Happened, ""))
	_, err := d.consumer.Claim(context.Background(), "in flight", oncemill.ClaimOptions{})
	must(t, err)
	d.doubt("newer")
	resolve := []string{"claims", "resolve"}
	for says, args := range map[string][]string{
		"needs one of --happened":         {"payments", "k", "--note", "n"},
		"needs --note":                    {"payments", "k", "--happened"},
		"takes CONSUMER and KEY":          {"payments", "--happened", "--note", "n"},
		"--result goes with --happened":   {"payments", "k", "--never", "--note", "n", "--result", "r"},
		"CONSUMER is \"\"":                {"", "k", "--never", "--note", "n"},
		"there is no claim of key \"k\"":  {"payments", "k", "--never", "--note", "n"},
		"with the outcome settled":        {"payments", "in doubt", "--never", "--note", "n"},
		"its attempt is still under way":  {"payments", "in flight", "--never", "--note", "n"},
		"claim was taken over: token 999": {"payments", "newer", "--never", "--note", "n", "--token", "999"},
		"want a token":                    {"payments", "newer", "--never", "--note", "n", "--token", "x"},
		"takes only one of --happened":    {"payments", "newer", "--never", "--happened", "--note", "n"},
		"KEY is empty":                    {"payments", "", "--never", "--note", "n"},
		"flag --token":                    {"payments", "newer", "--token", "x"},
		"--result must be a JSON object for the consumer guard, such as '{\"": {"guard", "k", "--happened", "--note", "n", "--result", "notjson"},
		"--result must be a JSON object for the consumer guard/acme":          {"guard/acme", "k", "--happened", "--note", "n", "--result", `["ch_1"]`},
		"--result must be a JSON object for the consumer guard/b":             {"guard/b", "k", "--happened", "--note", "n", "--result", "null"},
		"--result must be a JSON object for the consumer guard/c":             {"guard/c", "k", "--happened", "--note", "n", "--result", `{} {}`},
		"of consumer \"guard/d\"":                                             {"guard/d", "k", "--happened", "--note", "n", "--result", `{"charge":"ch_1"}`},
		"of consumer \"guards\"":                                              {"guards", "k", "--happened", "--note", "n", "--result", "notjson"},
	} {
		code, stdout, stderr := call(t, d.env, append(resolve, args...)...)
		if code == 0 || stdout != "" || !strings.Contains(stderr, says) {
			t.Errorf("%q: exit code %d, %q; want %q", args, code, stderr, says)
		}
	}
	for says, args := range map[string][]string{
		"needs one of --in-doubt and --blocked":      {"claims"},
		"takes only one of --in-doubt and --blocked": {"claims", "--in-doubt", "--blocked"},
		"KEY is empty": {"claims", "events", "payments", ""},
		"there is no flag --in-dout (is it --in-doubt?)":                            {"claims", "--in-dout"},
		"there is no flag --whatever\n":                                             {"claims", "--whatever"},
		"there is no flag --ask-token: it is only read from the environment, as ON": {"resolve", "--ask-token", "x"},
		"flag needs an argument: --since":                                           {"claims", "--since"},
		"there are no events":                                                       {"claims", "events", "payments", "nothing"},
		"needs --consumer":                                                          {"resolve"},
		"needs --ask-url":                                                           {"resolve", "--consumer", "c"},
		"must be http://":                                                           {"resolve", "--consumer", "c", "--ask-url", "127.0.0.1:80"},
		"takes flags only":                                                          {"resolve", "--consumer", "c", "x"},
	} {
		code, _, stderr := call(t, d.env, args...)
		if code == 0 || !strings.Contains(stderr, says) {
			t.Errorf("%q: exit code %d, %q; want %q", args, code, stderr, says)
		}
	}
}

func TestClaimsSumsUpWhatWasBlocked(t *testing.T) {
	t.Parallel()
	d := newDoubtful(t)
	d.wantIn(d.run("claims", "--blocked"), "nothing was blocked")
	d.doubt("j")
	d.doubt("k")
	for _, key := range []string{"j", "k", "k"} {
		_, err := d.consumer.Claim(context.Background(), key, oncemill.ClaimOptions{Amount: "12.50", Currency: "EUR"})
		if err == nil {
			t.Fatal("claimed twice")
		}
	}
	lines := strings.Split(d.run("claims", "--blocked"), "\n")
	d.wantIn(strings.Join(strings.Fields(lines[0]), " "), "CONSUMER BLOCKED EFFECTS AMOUNT CURRENCY")
	d.wantIn(strings.Join(strings.Fields(lines[1]), " "), "payments 3 2 25.00 EUR")
	d.wantIn(d.run("claims", "--blocked", "--json"), `"claims":3,"effects":2,"amount":"25.00"`)
	d.wantIn(d.run("claims", "--blocked", "--consumer", "others"), "nothing of consumer others was blocked", "no claims and no events at all")
}

// Mails have no amounts.
func TestClaimsSumsUpWhatHasNoAmount(t *testing.T) {
	t.Parallel()
	d := newDoubtful(t)
	for range 2 {
		_, _ = d.consumer.Claim(context.Background(), "k", oncemill.ClaimOptions{})
	}
	if lines := strings.Split(d.run("claims", "--blocked"), "\n"); strings.Join(strings.Fields(lines[1]), " ") != "payments 1 1 - -" {
		t.Errorf("got %q", lines)
	}
}

// What a person says of an effect is said on the command line and nowhere else: a variable
// that was set for another claim must not speak for this one.
func TestAVerdictIsNotTakenFromTheEnvironment(t *testing.T) {
	t.Parallel()
	d := newDoubtful(t)
	d.doubt("k")
	for _, name := range []string{"HAPPENED", "NOT_HAPPENED", "NEVER", "IN_DOUBT", "BLOCKED"} {
		env := map[string]string{"ONCEMILL_DATABASE_URL": d.env["ONCEMILL_DATABASE_URL"], "ONCEMILL_" + name: "true", "ONCEMILL_NOTE": "n"}
		for _, args := range [][]string{{"claims", "resolve", "payments", "k"}, {"claims"}} {
			if code, _, stderr := call(t, env, args...); code != 2 || !strings.Contains(stderr, "needs one of") {
				t.Errorf("%s: %v: exit code %d, %s", name, args, code, stderr)
			}
		}
	}
	for variable, says := range map[string]string{"ONCEMILL_NOTE": "needs --note", "ONCEMILL_TOKEN": "settled", "ONCEMILL_RESULT": "settled", "ONCEMILL_BY": "settled"} {
		key := variable
		claim := d.doubt(key)
		args := []string{"claims", "resolve", "payments", key, "--happened"}
		if says == "settled" {
			args = append(args, "--note", "n")
		}
		env := map[string]string{"ONCEMILL_DATABASE_URL": d.env["ONCEMILL_DATABASE_URL"], variable: "999"}
		if _, stdout, stderr := call(t, env, args...); !strings.Contains(stdout+stderr, says) {
			t.Errorf("%s: %s%s, want %s", variable, stdout, stderr, says)
		}
		if held, err := d.consumer.Held(context.Background(), key); err != nil || len(held.Result) > 0 {
			t.Errorf("%s: settled with the result %q (%v), claim %d", variable, held.Result, err, claim.Token())
		}
	}
	for command, flags := range map[string]int{"claims": 2, "claims resolve": 7} {
		_, help, _ := call(t, nil, append([]string{"help"}, strings.Fields(command)...)...)
		if n := strings.Count(help, "(only on the command line)"); n != flags {
			t.Errorf("the help of %s says of %d flags that they are not read from the environment, want %d", command, n, flags)
		}
	}
}

// A message that is nowhere any more has to be published again, and somebody has to know.
func TestClaimsResolveSaysThatNoMessageWasParked(t *testing.T) {
	t.Parallel()
	d := newDoubtful(t)
	claim, err := d.consumer.Claim(context.Background(), "k", oncemill.ClaimOptions{})
	must(t, err)
	must(t, claim.Doubt(context.Background(), "reply lost", nil))
	d.wantIn(d.run("claims", "resolve", "payments", "k", "--not-happened", "--note", "n"), "released; no message was parked beside it: publish it again")
}

// What a guard serves has no message: whoever claims next makes the effect.
func TestClaimsResolveSaysThatAnIDOfAGuardIsFree(t *testing.T) {
	t.Parallel()
	d := newDoubtful(t)
	for _, name := range []string{"guard", "guard/acme"} {
		consumer := d.consumer.Inbox().Consumer(name)
		doubt := func() {
			claim, err := consumer.Claim(context.Background(), "k", oncemill.ClaimOptions{})
			must(t, err)
			must(t, claim.Doubt(context.Background(), "reply lost", nil))
		}
		doubt()
		want := name + " k: released; the id is free, and the next claim of it proceeds\n"
		if got := d.run("claims", "resolve", name, "k", "--not-happened", "--note", "n"); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		doubt()
		d.run("claims", "resolve", name, "k", "--happened", "--note", "n", "--result", `{"charge":"ch_1"}`)
		if held, err := consumer.Held(context.Background(), "k"); err != nil || string(held.Result) != `{"charge":"ch_1"}` {
			t.Errorf("settled with %+v (%v)", held, err)
		}
	}
}

func TestResolveWarnsOfAConsumerThatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	d := newDoubtful(t)
	d.doubt("k")
	for consumer, warns := range map[string]bool{"nosuch": true, "payments": false} {
		warned := make(chan string, 1)
		ctx, stop := context.WithCancel(t.Context())
		lines, stderr := io.Pipe()
		done := make(chan int, 1)
		go func() {
			done <- main.Run(ctx, []string{"resolve", "--consumer", consumer, "--ask-url", "http://127.0.0.1:1"}, d.env, io.Discard, stderr)
			stderr.Close()
		}()
		go func() {
			first, _ := bufio.NewReader(lines).ReadString('\n')
			warned <- first
			_, _ = io.Copy(io.Discard, lines)
		}()
		if first := <-warned; strings.Contains(first, "no claims and no events") != warns {
			t.Errorf("%s: the log begins with %q", consumer, first)
		}
		stop()
		if code := <-done; code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
}

// The reason of a doubt is told once, not again by each question about it.
func TestClaimsEventsTellAReasonOnce(t *testing.T) {
	t.Parallel()
	d := newDoubtful(t)
	d.doubt("k")
	ctx, stop := context.WithCancel(t.Context())
	asked := 0
	r := &oncemill.Resolver{
		Consumer: d.consumer, LandingBound: 1, Backoff: 1, Poll: time.Millisecond,
		Ask: func(context.Context, oncemill.InDoubt) (oncemill.Resolution, error) {
			if asked++; asked == 3 {
				return oncemill.Resolution{Verdict: oncemill.Happened}, nil
			}
			return oncemill.Resolution{}, nil
		},
	}
	d.consumer.Inbox().Observer.Resolved = func(context.Context, string, string, oncemill.Verdict) { stop() }
	must(t, r.Run(ctx))
	events := d.run("claims", "events", "payments", "k")
	d.wantIn(events, "question 1", "question 3", "12.50 EUR")
	if n := strings.Count(events, "reply lost"); n != 1 {
		t.Errorf("the reason is told %d times:\n%s", n, events)
	}
	for line := range strings.Lines(events) {
		if !strings.Contains(line, "12.50 EUR") && !strings.HasPrefix(line, "TIME") {
			t.Errorf("an event has no amount: %s", line)
		}
	}
}

func TestResolveAsksAnAddress(t *testing.T) {
	t.Parallel()
	d := newDoubtful(t)
	answers := map[string]string{
		"a": `{"verdict": "happened", "note": "found", "result": {"id": "pi_1"}}`,
		"b": `{"verdict": "not happened", "note": "absent"}`,
		"c": `{"verdict": "perhaps"}`,
		"d": `no JSON`,
	}
	asked := make(chan string, 100)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q struct {
			Key         string
			ProviderKey string `json:"provider_key"`
			Message     struct{ Topic string }
		}
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil || q.Message.Topic != "orders" || r.Header.Get("Authorization") != "Bearer secret" ||
			q.ProviderKey != oncemill.ProviderKey("payments", q.Key) {
			t.Errorf("asked %+v (%v), %v", q, err, r.Header)
		}
		_, _ = io.WriteString(w, answers[q.Key])
		asked <- q.Key
	}))
	t.Cleanup(server.Close)
	for key := range answers {
		d.doubt(key)
	}
	d.env["ONCEMILL_ASK_TOKEN"] = "secret"
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int)
	go func() {
		done <- main.Run(ctx, []string{"resolve", "--consumer", "payments", "--ask-url", server.URL, "--landing-bound", "1ns", "--backoff", "1ms", "--poll-interval", "10ms"},
			d.env, io.Discard, io.Discard)
	}()
	for settled, released, unknown := false, false, map[string]int{}; !settled || !released || unknown["c"] < 2 || unknown["d"] < 2; {
		unknown[<-asked]++
		a, err := d.consumer.Held(ctx, "a")
		must(t, err)
		b, err := d.consumer.Held(ctx, "b")
		must(t, err)
		settled = a.Outcome == oncemill.Settled && string(a.Result) == `{"id": "pi_1"}`
		released = b == nil
	}
	cancel()
	if code := <-done; code != 0 {
		t.Errorf("exit code %d", code)
	}
	d.wantIn(d.run("claims", "events", "payments", "c"), "must be happened, not happened, never or unknown")
	d.wantIn(d.run("claims", "events", "payments", "b"), "absent")
}
