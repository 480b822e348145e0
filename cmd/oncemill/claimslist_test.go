package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	main "github.com/oncemill/oncemill/cmd/oncemill"
)

func (d *doubtful) exec(query string, args ...any) {
	d.t.Helper()
	_, err := d.consumer.Inbox().DB.ExecContext(context.Background(), query, args...)
	must(d.t, err)
}

func (d *doubtful) once(consumer, key string, opts oncemill.ClaimOptions) {
	d.t.Helper()
	must(d.t, d.consumer.Inbox().Consumer(consumer).OnceWith(context.Background(), key, opts, func(context.Context, oncemill.Tx) error { return nil }))
}

// refused runs the program and wants it to fail and say so.
func (d *doubtful) refused(code int, says string, args ...string) {
	d.t.Helper()
	got, stdout, stderr := call(d.t, d.env, args...)
	if got != code || stdout != "" || !strings.Contains(stderr, says) {
		d.t.Errorf("%q: exit code %d, %q, %q; want %d and %q", args, got, stdout, stderr, code, says)
	}
}

type listed struct {
	Consumer, Key, State, Fingerprint, Reason string
	Token                                     int64
	SettledAt                                 time.Time `json:"settled_at"`
}

// list returns what claims list --json lists.
func (d *doubtful) list(args ...string) (all []listed) {
	d.t.Helper()
	decoder := json.NewDecoder(strings.NewReader(d.run(append([]string{"claims", "list", "--json"}, args...)...)))
	for decoder.More() {
		var one listed
		must(d.t, decoder.Decode(&one))
		all = append(all, one)
	}
	return all
}

func keysOf(all []listed) (keys []string) {
	for _, one := range all {
		keys = append(keys, one.Key)
	}
	return keys
}

func (d *doubtful) wantKeys(want []string, args ...string) {
	d.t.Helper()
	if got := keysOf(d.list(args...)); !slices.Equal(got, want) {
		d.t.Errorf("%q lists %q, want %q", args, got, want)
	}
}

// various makes a claim of every kind, of two consumers.
func (d *doubtful) various() {
	d.t.Helper()
	ctx := context.Background()
	d.once("billing", "order 1", oncemill.ClaimOptions{Fingerprint: []byte{0xab, 0xcd}})
	d.once("billing", "given-up", oncemill.ClaimOptions{Outcome: oncemill.Dead})
	d.doubt("doubtful")
	_, err := d.consumer.Claim(ctx, "flying", oncemill.ClaimOptions{})
	must(d.t, err)
	claim, err := d.consumer.Claim(ctx, "failed", oncemill.ClaimOptions{})
	must(d.t, err)
	must(d.t, claim.Fail(ctx, "card declined", nil))
}

func TestClaimsListListsEveryKindOfClaim(t *testing.T) {
	t.Parallel()
	d := newDoubtful(t)
	d.wantIn(d.run("claims", "list"), "no claims match")
	d.various()
	got := make(map[string]listed)
	for _, one := range d.list() {
		got[one.Key] = one
	}
	for key, want := range map[string]string{
		"order 1": "billing settled", "given-up": "billing dead", "doubtful": "payments in doubt", "flying": "payments in flight", "failed": "payments failed",
	} {
		if one := got[key]; one.Consumer+" "+one.State != want {
			t.Errorf("%s: got %+v, want %s", key, one, want)
		}
	}
	if len(got) != 5 || got["order 1"].Fingerprint != "abcd" || got["failed"].Reason != "card declined" || got["flying"].Token == 0 {
		t.Errorf("got %+v", got)
	}
	d.wantIn(d.run("claims", "list"), "CONSUMER", `"order 1"`, "12.50 EUR", "in flight", "in doubt", "card declined", "reply lost after all")
	// The claims of one consumer do not hide those in doubt of another.
	d.wantKeys([]string{"flying", "doubtful", "given-up"}, "--limit", "3")
	d.wantKeys([]string{"given-up", "order 1"}, "--consumer", "billing")
	d.wantKeys([]string{"given-up"}, "--outcome", "dead")
	d.wantKeys([]string{"failed"}, "--outcome", "failed")
	d.wantKeys([]string{"order 1"}, "--outcome", "settled")
	d.wantKeys([]string{"flying", "doubtful"}, "--outcome", "unsettled")
	d.wantKeys([]string{"doubtful"}, "--outcome", "unsettled", "--key", "d")
	d.wantIn(d.run("claims", "list", "--consumer", "bilings"), "no claims of consumer bilings match: it has no claims and no events at all")
	d.wantIn(d.run("claims", "list", "--consumer", "billing", "--key", "x"), "no claims of consumer billing match\n")
}

func TestClaimsListShowsKeysAsTheyWereGiven(t *testing.T) {
	t.Parallel()
	d := newDoubtful(t)
	keys := []string{"a", "a\x01b", "a\x00b", "a\xffb", "oncemill:a", "b"}
	for _, key := range keys {
		d.once("billing", key, oncemill.ClaimOptions{})
	}
	long := strings.Repeat("a", 600)
	d.once("billing", long, oncemill.ClaimOptions{})
	d.wantIn(d.run("claims", "list"), `"a\x01b"`, `"a\x00b"`, `"a\xffb"`, "oncemill:a", "oncemill:sha256:")
	d.wantKeys([]string{"a", "a\x01b", "a\x00b", "a\ufffdb"}, "--key", "a") // JSON has no other bytes
	d.wantKeys([]string{"oncemill:a"}, "--key", "oncemill:a")
	d.wantKeys([]string{"b"}, "--key", "b")
	all := d.list("--key", "oncemill:")
	if len(all) != 2 || all[0].Key != "oncemill:a" {
		t.Fatalf("got %+v", all)
	}
	d.wantIn(d.run("claims", "show", "billing", all[1].Key), "state", "settled", "duplicate")
	d.wantIn(d.run("claims", "show", "billing", long), "in the tables", "oncemill:sha256:", "settled")
}

// What a handler fails with has no claim, and is listed by itself.
func TestClaimsListListsWhatKeepsFailing(t *testing.T) {
	t.Parallel()
	d := newDoubtful(t)
	ctx := context.Background()
	d.wantIn(d.run("claims", "list", "--failing"), "no message fails\n")
	billing := d.consumer.Inbox().Consumer("billing")
	for range 3 {
		_, err := billing.CountError(ctx, "order 1", errors.New("no such customer\nat all"))
		must(t, err)
	}
	_, err := billing.CountError(ctx, "handled", errors.New("deadlock"))
	must(t, err)
	d.once("billing", "handled", oncemill.ClaimOptions{})
	_, err = d.consumer.CountError(ctx, "other", errors.New("refused"))
	must(t, err)
	lines := strings.Split(d.run("claims", "list", "--failing"), "\n")
	if len(lines) != 4 || !strings.HasPrefix(lines[1], "payments  other") || !strings.Contains(lines[2], `billing   "order 1"  3`) || !strings.HasSuffix(lines[2], "no such customer at all") {
		t.Errorf("got %q", lines)
	}
	var one struct {
		Consumer, Key string
		Errors        int
		LastError     string    `json:"last_error"`
		LastAt        time.Time `json:"last_at"`
	}
	must(t, json.Unmarshal([]byte(d.run("claims", "list", "--failing", "--consumer", "billing", "--since", "1h", "--json")), &one))
	if one.Key != "order 1" || one.Errors != 3 || one.LastError != "no such customer\nat all" || one.LastAt.IsZero() {
		t.Errorf("got %+v", one)
	}
	d.refused(2, "leave them out with --failing", "claims", "list", "--failing", "--outcome", "dead")
}

// Pages and their borders: also among many claims of one time, as a batch has them.
func TestClaimsListGoesThroughManyPages(t *testing.T) {
	t.Parallel()
	d := newDoubtful(t)
	d.exec(`INSERT INTO oncemill.claims (consumer, key, settled_at)
SELECT 'billing', 'key-' || lpad(i::text, 5, '0'), now() - (i / 700) * interval '1 minute' FROM generate_series(0, 2499) AS i`)
	d.exec(`INSERT INTO oncemill.claims (consumer, key, token, attempts, claimed_at, lease_until, effect_until, settled_at, outcome)
SELECT 'payments', 'key-' || i, nextval('oncemill.tokens'), 1, now(), now() + interval '1 hour', now(), NULL, NULL FROM generate_series(0, 1199) AS i`)
	all := d.list("--limit", "100000")
	seen := make(map[string]bool)
	for i, one := range all {
		seen[one.Consumer+one.Key] = true
		if i > 0 && one.Consumer == all[i-1].Consumer && one.SettledAt.After(all[i-1].SettledAt) {
			t.Fatalf("%+v comes behind %+v", one, all[i-1])
		}
	}
	if all[1199].Consumer != "payments" || all[1200].Consumer != "billing" {
		t.Error("those that are not settled do not come first")
	}
	if len(all) != 3700 || len(seen) != 3700 {
		t.Errorf("listed %d claims, %d different ones, want 3700", len(all), len(seen))
	}
	byKey := keysOf(d.list("--consumer", "billing", "--key", "key-", "--limit", "100000"))
	if len(byKey) != 2500 || !slices.IsSorted(byKey) {
		t.Errorf("listed %d claims by key", len(byKey))
	}
	if n := len(d.list("--consumer", "billing", "--since", "90s", "--limit", "100000")); n != 1400 {
		t.Errorf("listed %d claims of the last 90 seconds, want 1400", n)
	}
	if n := len(d.list("--key", "key-", "--since", "90s", "--consumer", "billing", "--limit", "100000")); n != 1400 {
		t.Errorf("listed %d claims of the prefix of the last 90 seconds, want 1400", n)
	}
	code, stdout, stderr := call(t, d.env, "claims", "list", "--limit", "600")
	if n := strings.Count(stdout, "\n"); code != 0 || n != 601 || !strings.Contains(stderr, "these are the first 600: there may be more (--limit)") {
		t.Errorf("exit code %d, %d lines, %q", code, n, stderr)
	}
}

// However many claims there are, a page reads what it shows.
func TestClaimsListReadsAPageAlongAnIndex(t *testing.T) {
	t.Parallel()
	d := newDoubtful(t)
	d.exec(`INSERT INTO oncemill.claims (consumer, key, settled_at)
SELECT 'c' || i % 3, 'key-' || i, now() - i * interval '1 second' FROM generate_series(0, 99999) AS i`)
	d.exec(`INSERT INTO oncemill.claims (consumer, key, token, attempts, claimed_at, lease_until, effect_until, settled_at, outcome)
SELECT 'c1', 'open-' || i, nextval('oncemill.tokens'), 1, now(), now() + i * interval '1 second', now(), NULL, NULL FROM generate_series(0, 9999) AS i`)
	for _, analyzed := range []bool{false, true} {
		if analyzed {
			d.exec(`ANALYZE oncemill.claims`)
		}
		for name, q := range map[string]struct {
			query, index string
			args         []any
		}{
			"settled":              {main.SettledSQL, "claims_by_age", []any{"c1", nil, "any", 500, nil, ""}},
			"settled, lately":      {main.SettledSQL, "claims_by_age", []any{"c1", int64(3600e6), "any", 500, nil, ""}},
			"settled, a next page": {main.SettledSQL, "claims_by_age", []any{"c1", nil, "settled", 500, time.Now().Add(-12 * time.Hour), "key-5"}},
			"unsettled":            {main.UnsettledSQL, "claims_unsettled", []any{"c1", nil, "any", 500, nil, ""}},
			"by key":               {strings.Replace(main.ByKeySQL, "{below}", "key < $7", 1), "claims_pkey", []any{"c1", nil, "any", 500, "key-3", "key-", "key."}},
		} {
			plan := d.explain(q.query, q.args...)
			if !strings.Contains(plan, q.index) || strings.Contains(plan, "Seq Scan") {
				t.Errorf("%s (analyzed: %v) is not read along %s:\n%s", name, analyzed, q.index, plan)
			}
			if rows := rowsRead(t, plan); rows > 1100 {
				t.Errorf("%s (analyzed: %v) reads %d rows:\n%s", name, analyzed, rows, plan)
			}
		}
	}
}

// explain runs a query as claims list does, and returns its plan.
func (d *doubtful) explain(query string, args ...any) (plan string) {
	d.t.Helper()
	tx, err := d.consumer.Inbox().DB.BeginTx(context.Background(), nil)
	must(d.t, err)
	defer tx.Rollback() //nolint:errcheck // it has only read
	_, err = tx.Exec(main.ByIndexSQL)
	must(d.t, err)
	rows, err := tx.Query(`EXPLAIN (ANALYZE, TIMING OFF) `+strings.ReplaceAll(query, "{schema}", "oncemill"), args...)
	must(d.t, err)
	defer rows.Close()
	for rows.Next() {
		var line string
		must(d.t, rows.Scan(&line))
		plan += line + "\n"
	}
	must(d.t, rows.Err())
	return plan
}

// rowsRead is how many rows a plan's scan has read.
func rowsRead(t *testing.T, plan string) (n int) {
	t.Helper()
	for line := range strings.Lines(plan) {
		var rows int
		if _, actual, ok := strings.Cut(line, "(actual rows="); ok && strings.Contains(line, "Scan") {
			_, err := fmt.Sscanf(strings.Replace(actual, ".00", "", 1), "%d", &rows)
			must(t, err)
			n += rows
		}
		if _, removed, ok := strings.Cut(line, "Rows Removed by Filter: "); ok {
			_, err := fmt.Sscanf(removed, "%d", &rows)
			must(t, err)
			n += rows
		}
	}
	return n
}

func TestClaimsShowTellsAllAboutAKey(t *testing.T) {
	t.Parallel()
	d := newDoubtful(t)
	d.various()
	ctx := context.Background()
	billing := d.consumer.Inbox().Consumer("billing")
	for range 3 {
		_, err := billing.CountError(ctx, "failing", errors.New("no such\ncustomer"))
		must(t, err)
	}
	claim, err := d.consumer.Claim(ctx, "settled", oncemill.ClaimOptions{Action: "charge", Agent: "bot 1", Scope: "s"})
	must(t, err)
	must(t, claim.Settle(ctx, []byte(`{"id":"pi_1"}`), nil))
	for key, parts := range map[string][]string{
		"billing/order 1":   {`"order 1"`, "settled", "abcd", "acknowledged as a duplicate, and does not run", "with another fingerprint is refused"},
		"billing/given-up":  {"dead", "was given up, and its dead letter sent"},
		"billing/failing":   {"free", "3, the last at", "no such customer", "It runs, after 3 errors of the handler"},
		"billing/unknown":   {"free", "It runs: the key is free."},
		"nobody/unknown":    {"the consumer has no claims and no events at all: is that its name?"},
		"payments/flying":   {"in flight", "lease until", "It waits", "provider key"},
		"payments/failed":   {"failed", "card declined", "has failed for good"},
		"payments/settled":  {"settled", `{"id":"pi_1"}`, `"bot 1"`, "charge", "EVENT", "claimed"},
		"payments/doubtful": {"in doubt", "12.50 EUR", "parked message", "of topic orders", "one is parked already", "oncemill claims resolve --token", "reply lost after all", "the last 2 events"},
	} {
		consumer, key, _ := strings.Cut(key, "/")
		d.wantIn(d.run("claims", "show", consumer, key), parts...)
	}
	d.exec(`INSERT INTO oncemill.watermarks VALUES ('billing', '2026-01-02Z')`)
	d.wantIn(d.run("claims", "show", "billing", "unknown"), "But one from before 2026-01-02T00:00:00Z is refused as too old")
	var one struct {
		State         string
		StoredKey     string `json:"stored_key"`
		HandlerErrors struct{ Errors int }
		Message       struct{ Topic string }
		Events        []struct{ Kind string }
		Redelivery    string
	}
	must(t, json.Unmarshal([]byte(d.run("claims", "show", "payments", "doubtful", "--json")), &one))
	if one.State != "in doubt" || one.StoredKey != "doubtful" || one.Message.Topic != "orders" || len(one.Events) != 2 || one.Redelivery == "" {
		t.Errorf("got %+v", one)
	}
	// What it says of a redelivery is so.
	d.once("billing", "failing", oncemill.ClaimOptions{})
	d.wantIn(d.run("claims", "show", "billing", "failing"), "settled", "duplicate")
}

func TestClaimsPurgeForgetsWhatIsOldAndSaysSo(t *testing.T) {
	t.Parallel()
	d := newDoubtful(t)
	d.exec(`INSERT INTO oncemill.claims (consumer, key, settled_at) SELECT 'billing', 'old-' || i, now() - interval '40 days' FROM generate_series(1, 2500) AS i`)
	d.exec(`INSERT INTO oncemill.claims (consumer, key, settled_at) SELECT 'other', 'old', now() - interval '40 days'`)
	d.exec(`INSERT INTO oncemill.events (consumer, key, kind, at) SELECT 'billing', 'old-1', 'dead', now() - interval '400 days'`)
	d.once("billing", "new", oncemill.ClaimOptions{})
	purge := []string{"claims", "purge", "--consumer", "billing", "--older-than", "720h"}
	d.wantIn(d.run(append(purge, "--dry-run")...), "would forget 2500 claims of consumer billing", "would be refused")
	if n := len(d.list("--consumer", "billing", "--limit", "9999")); n != 2501 {
		t.Errorf("%d claims are left after a dry run", n)
	}
	d.wantIn(d.run(append(purge, "--yes")...), "forgot 2500 claims of consumer billing")
	d.wantIn(d.run(append(purge, "--yes")...), "nothing of consumer billing is older than 720h")
	d.wantIn(d.run(append(purge, "--dry-run")...), "nothing of consumer billing is older than 720h")
	d.wantKeys([]string{"new", "old"})
	d.wantIn(d.run("claims", "events", "billing", "old-1"), "dead") // of which somebody else knows how long they are kept
	err := d.consumer.Inbox().Consumer("billing").OnceWith(t.Context(), "old-1", oncemill.ClaimOptions{Origin: time.Now().AddDate(0, 0, -40)},
		func(context.Context, oncemill.Tx) error { return nil })
	if !errors.Is(err, oncemill.ErrTooOld) {
		t.Errorf("a message of a claim that was forgotten: got %v, want it refused as too old", err)
	}
	d.wantIn(d.run("claims", "purge", "--consumer", "nobody", "--older-than", "720h", "--yes"), "it has no claims and no events at all")
}

func TestClaimsPurgeSaysWhatOthersHold(t *testing.T) {
	t.Parallel()
	d := newDoubtful(t)
	d.exec(`INSERT INTO oncemill.claims (consumer, key, settled_at) SELECT 'billing', 'old-' || i, now() - interval '40 days' FROM generate_series(1, 3) AS i`)
	tx, err := d.consumer.Inbox().DB.Begin()
	must(t, err)
	defer tx.Rollback() //nolint:errcheck // it has only locked
	_, err = tx.Exec(`SELECT FROM oncemill.claims WHERE key = 'old-2' FOR UPDATE`)
	must(t, err)
	d.refused(1, "forgot 2 claims, and left others that another process holds", "claims", "purge", "--consumer", "billing", "--older-than", "720h", "--yes")
}

func TestTheClaimsCommandsNameWhatIsWrong(t *testing.T) {
	t.Parallel()
	d := newDoubtful(t)
	d.various()
	for says, args := range map[string][]string{
		"want one of any, settled, dead, failed, unsettled":     {"list", "--outcome", "open"},
		"for flag --since: want a time above 0 with its unit":   {"list", "--since", "3d"},
		"for flag --limit: want a whole number of at least 1":   {"list", "--limit", "0"},
		"takes flags only, but was given 1 other arguments":     {"list", "payments"},
		"takes CONSUMER and KEY besides flags, but was given 1": {"show", "payments"},
		"KEY is empty":   {"show", "payments", ""},
		`CONSUMER is ""`: {"show", "", "k"},
		"needs --consumer: whose claims to forget":                      {"purge", "--older-than", "720h", "--yes"},
		"needs --older-than":                                            {"purge", "--consumer", "billing", "--yes"},
		"--older-than is 1m0s: must be at least 10m0s":                  {"purge", "--consumer", "billing", "--older-than", "1m", "--yes", "--below-retention"},
		"below 168h0m0s: a message that the broker delivers again":      {"purge", "--consumer", "billing", "--older-than", "1h", "--yes"},
		"needs one of --dry-run, to count what would go, and --yes, to": {"purge", "--consumer", "billing", "--older-than", "720h"},
		"for flag --older-than: want a time above 0":                    {"purge", "--consumer", "billing", "--older-than", "30", "--yes"},
	} {
		d.refused(2, says, append([]string{"claims"}, args...)...)
	}
	for name, value := range map[string]string{"CONSUMER": "billing", "OLDER_THAN": "720h", "YES": "true"} {
		d.env["ONCEMILL_"+name] = value
	}
	d.refused(2, "needs --consumer", "claims", "purge") // what cannot be undone is not read from the environment
	d.wantIn(d.run("claims", "purge", "--consumer", "billing", "--older-than", "20m", "--below-retention", "--dry-run"), "nothing of consumer billing is older than 20m")
}

// The commands of the page's section on claims are run, one after another, and write what it
// says, but for times.
func TestTheClaimsCommandsWriteWhatThePageSays(t *testing.T) {
	t.Parallel()
	s := newTables(t)
	_, err := s.db.Exec(`
		INSERT INTO oncemill.claims (consumer, key, settled_at, outcome) VALUES
		('billing', 'order-7', '2026-11-01T09:00Z', 'settled'), ('billing', 'order-8', now() - interval '1 h', 'settled'), ('billing', 'order-9', now() - interval '2 h', 'dead');
		INSERT INTO oncemill.claims (consumer, key, settled_at, outcome, token, attempts, claimed_at, lease_until, effect_until) VALUES
		('mails', 'welcome-12', NULL, NULL, nextval('oncemill.tokens'), 1, now() - interval '1 h', now() - interval '59 min', now() - interval '59 min');
		INSERT INTO oncemill.handler_errors (consumer, key, errors, last_error, last_at) VALUES
		('billing', 'order-10', 4, 'customer 7 has no address', now())`)
	must(t, err)
	page, err := os.ReadFile("../../docs/operating.md")
	must(t, err)
	_, section, _ := strings.Cut(string(page), "\n## Claims\n")
	section, _, _ = strings.Cut(section, "\n## ")
	if ran := runPage(t, s, []byte(section), t.TempDir()); ran < 5 {
		t.Errorf("only %d commands were found", ran)
	}
}
