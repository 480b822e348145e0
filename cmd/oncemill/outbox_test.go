package main_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/oncemill/oncemill/internal/testenv"
)

// tables is a database with messages in all the tables of the outbox: those of the page
// docs/outbox.md.
type tables struct {
	t   *testing.T
	db  *sql.DB
	env map[string]string
}

func newTables(t *testing.T) *tables {
	t.Helper()
	testenv.NeedsSchema(t, 6)
	url := testenv.PostgresURL(t)
	db := testenv.Open(t, url)
	_, err := db.Exec(`
		INSERT INTO oncemill.outbox (id, topic, uuid, ordering_key, metadata, payload, created_at, attempts, parked_at, not_before, last_error) VALUES
		(1, 'orders', 'order-1041', 'customer-7', '{}', 'x', '2026-11-30T08:59Z', 1, '2026-11-30T09:00Z', NULL,
			'oncemill: jetstream: outbox row 1 to "orders": message refused: 1048701 bytes of payload and headers are more than the server''s max_payload of 1048576'),
		(2, 'orders', 'order-1042', 'customer-7', '{}', 'x', '2026-11-30T09:00Z', 0, NULL, NULL, NULL),
		(3, 'orders', 'order-1043', 'customer-7', '{}', 'x', '2026-11-30T09:00Z', 0, NULL, NULL, NULL),
		(4, 'invoices', 'invoice-12', NULL, '{"tenant": "acme"}', '{"invoice": 12}', '2026-11-30T09:00Z', 1, '2026-11-30T09:05Z', NULL, 'oncemill: jetstream: outbox row 4 to "invoices": message refused: topic has a space'),
		(5, 'invoices', 'invoice-13', NULL, '{}', 'x', '2026-11-30T09:00Z', 1, '2026-11-30T09:06Z', NULL, 'oncemill: jetstream: outbox row 5 to "invoices": message refused: topic has a space'),
		(6, 'orders.old', 'order-17', '\x00ff', '{}', 'x', '2026-11-30T09:00Z', 3, '2026-11-30T09:07Z', NULL,
			'oncemill: jetstream: outbox row 6 to "orders.old": message refused: 2097152 bytes of payload and headers are more than the server''s max_payload of 1048576'),
		(7, 'orders', 'order-1044', NULL, '{}', 'x', '2026-11-30T09:00Z', 2, NULL, 'infinity', 'timeout');
		SELECT setval(pg_get_serial_sequence('oncemill.outbox', 'id'), 7);
		INSERT INTO oncemill.scheduled (topic, uuid, ordering_key, deliver_after) VALUES
		('orders.reminder', 'reminder-7', 'customer-7', '2026-12-24T18:00Z'), ('orders.reminder', 'reminder-8', NULL, '2026-12-31T18:00Z');
		INSERT INTO oncemill.published (published_at, id, dedup_id, topic, uuid, metadata, created_at) VALUES
		(now() - interval '2 h', 1, gen_random_uuid(), 'orders', 'order-1', '{}', now()), (now() - interval '2 h', 2, gen_random_uuid(), 'orders', 'order-2', '{}', now()),
		(now(), 3, gen_random_uuid(), 'other', 'other-1', '{}', now())`)
	must(t, err)
	return &tables{t, db, map[string]string{"ONCEMILL_DATABASE_URL": url}}
}

// run runs the program and wants it to succeed.
func (s *tables) run(args ...string) (stdout, stderr string) {
	s.t.Helper()
	code, stdout, stderr := call(s.t, s.env, args...)
	if code != 0 {
		s.t.Fatalf("%v: exit code %d, %s", args, code, stderr)
	}
	return stdout, stderr
}

func (s *tables) count(where string) (n int) {
	s.t.Helper()
	must(s.t, s.db.QueryRow(`SELECT count(*) FROM oncemill.`+where).Scan(&n))
	return n
}

// The commands of the page are run, one after another, and write what it says. Times are
// not compared, since some of them are of the run.
func TestTheCommandsOfTheOutboxPageWriteWhatItSays(t *testing.T) {
	t.Parallel()
	s := newTables(t)
	page, err := os.ReadFile("../../docs/outbox.md")
	must(t, err)
	dir := t.TempDir()
	if ran := runPage(t, s, page, dir); ran < 12 {
		t.Errorf("only %d commands were found", ran)
	}
	// What was dropped can be published after all, as the page says, also what is large.
	_, err = s.db.Exec(`INSERT INTO oncemill.outbox (topic, uuid, ordering_key, payload, parked_at) SELECT 'large', 'l' || i, 'k', convert_to(repeat('"\\', 1500000), 'UTF8'), now() FROM generate_series(1, 2) AS i`)
	must(t, err)
	large, _ := s.run("outbox", "drop", "--topic", "large", "--yes", "--print")
	lines, err := os.ReadFile(filepath.Join(dir, "dropped.jsonl"))
	must(t, err)
	publishDropped(t, s.env["ONCEMILL_DATABASE_URL"], page, string(lines)+large)
	if n := s.count(`outbox WHERE topic = 'large' AND payload = convert_to(repeat('"\\', 1500000), 'UTF8') AND ordering_key = 'k'`); n != 2 {
		t.Errorf("%d large messages were published again, want 2", n)
	}
	if n := s.count(`outbox WHERE topic = 'invoices' AND uuid = 'invoice-12' AND metadata = '{"tenant": "acme"}' AND payload = '{"invoice": 12}' AND ordering_key IS NULL AND parked_at IS NULL`); n != 1 {
		t.Errorf("it was not published again")
	}
}

// publishDropped does what the page says, with a file of these lines. What psql's \\copy
// does is a COPY from what it reads.
func publishDropped(t *testing.T, url string, page []byte, lines string) {
	t.Helper()
	steps := regexp.MustCompile("(?s)```sql\n(CREATE TEMP TABLE dropped.*?)\\\\copy dropped FROM 'dropped.jsonl' ([^\n]*)\n(INSERT.*?)```").FindSubmatch(page)
	if steps == nil {
		t.Fatal("the page does not say how to publish what was dropped")
	}
	conn, err := pgx.Connect(t.Context(), url)
	must(t, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), string(steps[1]))
	must(t, err)
	_, err = conn.PgConn().CopyFrom(t.Context(), strings.NewReader(lines), `COPY dropped FROM STDIN `+string(steps[2]))
	must(t, err)
	_, err = conn.Exec(t.Context(), string(steps[3]))
	must(t, err)
}

// runPage runs the commands of a page in a directory, and compares what they write. It
// returns how many there are.
func runPage(t *testing.T, s *tables, page []byte, dir string) (ran int) {
	t.Helper()
	path, err := binary()
	must(t, err)
	for _, block := range regexp.MustCompile("(?s)```console\n(.*?)```").FindAllSubmatch(page, -1) {
		for _, step := range strings.Split("\n"+string(block[1]), "\n$ ")[1:] {
			command, want, _ := strings.Cut(step, "\n")
			cmd := exec.CommandContext(t.Context(), "sh", "-c", command)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "ONCEMILL_DATABASE_URL="+s.env["ONCEMILL_DATABASE_URL"], "PATH="+filepath.Dir(path)+":"+os.Getenv("PATH"))
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%s: %v\n%s", command, err, out)
			}
			if got, want := withoutTimes(string(out)), withoutTimes(want); got != want {
				t.Errorf("$ %s\n%s\nthe page says\n%s", command, got, want)
			}
			ran++
		}
	}
	return ran
}

var (
	aTime = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`)
	aWait = regexp.MustCompile(`\((in )?[0-9hms.]+( ago)?\)`)
	gaps  = regexp.MustCompile(` {2,}`)
)

// withoutTimes is a text in which all times are the same, and so are the gaps that depend
// on how wide they are.
func withoutTimes(text string) string {
	text = aWait.ReplaceAllString(aTime.ReplaceAllString(text, "TIME"), "(WAIT)")
	return strings.TrimSpace(gaps.ReplaceAllString(text, "  "))
}

func TestOutboxListWritesJSON(t *testing.T) {
	t.Parallel()
	s := newTables(t)
	out, _ := s.run("outbox", "list", "--json", "--key", `"\x00\xff"`)
	var one struct {
		ID          int64
		Topic, UUID string
		Key         *string
		OrderingKey []byte `json:"ordering_key"`
		Attempts    int
		Size        int
		Error       string
	}
	must(t, json.Unmarshal([]byte(out), &one))
	if one.ID != 6 || one.Topic != "orders.old" || one.UUID != "order-17" || one.Key != nil || string(one.OrderingKey) != "\x00\xff" || one.Attempts != 3 || one.Size != 1 || one.Error == "" {
		t.Errorf("got %+v", one)
	}
	out, _ = s.run("outbox", "list", "--deferred")
	if !strings.Contains(out, "NEXT ATTEMPT") || !strings.Contains(out, "never") || !strings.Contains(out, "1 deferred message\n") {
		t.Errorf("got\n%s", out)
	}
	out, _ = s.run("outbox", "list", "--deferred", "--topic", "orders")
	if !strings.HasSuffix(out, "\n1 deferred message that matches\n") {
		t.Errorf("got\n%s", out)
	}
	out, _ = s.run("outbox", "list", "--scheduled", "--summary")
	if fields := strings.Fields(out); strings.Contains(out, "ERROR") || !strings.Contains(strings.Join(fields, " "), "MESSAGES TOPIC FIRST DUE LAST DUE 2 orders.reminder") {
		t.Errorf("got\n%s", out)
	}
	out, _ = s.run("outbox", "list", "--topic", "nothing")
	if out != "0 parked messages that match\n" {
		t.Errorf("got\n%s", out)
	}
	out, _ = s.run("outbox", "list", "--summary", "--json")
	if n := strings.Count(out, "\n"); n != 3 || !strings.Contains(out, `"messages":2`) {
		t.Errorf("got\n%s", out)
	}
	out, _ = s.run("outbox", "--json")
	var status map[string]any
	must(t, json.Unmarshal([]byte(out), &status))
	if parked, _ := status["parked"].(map[string]any); parked["rows"] != 4.0 || parked["accuracy"] != "exact" {
		t.Errorf("status is %s", out)
	}
}

// A list is read in pages, and none of the rows is missed or comes twice.
func TestOutboxListReadsPageByPage(t *testing.T) {
	t.Parallel()
	s := newTables(t)
	_, err := s.db.Exec(`INSERT INTO oncemill.outbox (topic, parked_at) SELECT 'many', now() FROM generate_series(1, 1234)`)
	must(t, err)
	out, _ := s.run("outbox", "list", "--topic", "many")
	seen := make(map[string]bool)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	for _, line := range lines[1 : len(lines)-1] {
		seen[strings.Fields(line)[0]] = true
	}
	if len(seen) != 1234 || len(lines) != 1236 || lines[1235] != "1234 parked messages that match" {
		t.Errorf("%d rows in %d lines, the last is %q", len(seen), len(lines), lines[len(lines)-1])
	}
}

func TestOutboxDropSaysWhatGoesOn(t *testing.T) {
	t.Parallel()
	s := newTables(t)
	out, stderr := s.run("outbox", "drop", "--key", "customer-7", "--yes")
	if out != `{"id":1,"topic":"orders","uuid":"order-1041","key":"customer-7"}`+"\n" {
		t.Errorf("got %s", out)
	}
	if !strings.Contains(stderr, "1 parked message was dropped\n2 of the same ordering keys go on now") {
		t.Errorf("got %s", stderr)
	}
	if s.run("outbox", "drop", "--all", "--dry-run"); s.count("outbox WHERE parked_at IS NOT NULL") != 3 {
		t.Error("a dry run has dropped")
	}
	s.run("outbox", "drop", "--deferred", "--all", "--yes")
	if s.run("outbox", "drop", "--all", "--yes"); s.count("outbox") != 2 {
		t.Errorf("%d rows are left", s.count("outbox"))
	}
}

func TestOutboxDropTakesWhatWaitsBehindToo(t *testing.T) {
	t.Parallel()
	s := newTables(t)
	out, _ := s.run("outbox", "drop", "--id", "1", "--topic", "orders", "--with-behind", "--dry-run")
	if out != "1 parked message would be dropped\n2 that wait behind would be dropped too\n" || s.count("outbox") != 7 {
		t.Errorf("got %s", out)
	}
	out, stderr := s.run("outbox", "drop", "--id", "1", "--topic", "orders", "--with-behind", "--yes")
	if strings.Count(out, `"key":"customer-7"`) != 3 || stderr != "1 parked message was dropped\n2 that waited behind were dropped too\n" || s.count("outbox") != 4 {
		t.Errorf("got %s%s", out, stderr)
	}
}

// What cannot be written down is not deleted.
func TestOutboxDropKeepsWhatItCannotWrite(t *testing.T) {
	t.Parallel()
	s := newTables(t)
	path, err := binary()
	must(t, err)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	must(t, err)
	defer full.Close()
	cmd := exec.CommandContext(t.Context(), path, "outbox", "drop", "--all", "--yes")
	cmd.Env, cmd.Stdout = append(os.Environ(), "ONCEMILL_DATABASE_URL="+s.env["ONCEMILL_DATABASE_URL"]), full
	if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%v", err)
	}
	if n := s.count("outbox"); n != 7 {
		t.Errorf("%d rows are left, want all 7", n)
	}
}

func TestOutboxCommandsNameWhatIsWrong(t *testing.T) {
	t.Parallel()
	s := newTables(t)
	for _, test := range []struct {
		args string
		code int
		says string
	}{
		{"list --scheduled --deferred", 2, "only one of --deferred and --scheduled"},
		{"list --scheduled --error e", 2, "--error is not for --scheduled"},
		{"list --id x", 2, "want an id as it is listed"},
		{`list --key "x`, 2, "as it is listed"},
		{"list parked", 2, "takes flags only"},
		{"lst", 2, "one of list, retry, drop, cancel, replay"},
		{"retry", 2, "needs to know which: give --topic, --key, --error or --id, or --all"},
		{"retry --all --topic t", 2, "but not both"},
		{"drop --all", 2, "needs --yes"},
		{"drop --all --with-behind --yes", 2, "needs --topic with --with-behind"},
		{"drop --yes", 2, "needs to know which"},
		{"retry --id 999999", 1, "there is no message 999999 in the outbox"},
		{"drop --id 999999 --yes", 1, "there is no message 999999 in the outbox"},
		{"drop --id 999999 --dry-run", 1, "there is no message 999999 in the outbox"},
		{"retry --id 7", 1, "message 7 is deferred, not parked: add --deferred"},
		{"drop --id 7 --yes", 1, "message 7 is deferred, not parked: add --deferred"},
		{"retry --id 1 --deferred", 1, "message 1 is parked, not deferred: leave out --deferred"},
		{"retry --id 2", 1, "message 2 is not parked: it waits"},
		{"retry --id 1 --topic other", 1, "message 1 is parked, but does not match the other flags"},
		{"cancel", 2, "needs --uuid"},
		{"cancel --uuid nobody", 1, "no message with the UUID nobody is scheduled"},
		{"cancel --uuid reminder-7 --topic other", 1, "another UUID or topic"},
		{"replay", 2, "needs --since"},
		{"replay --since yesterday", 2, "how long ago it is, such as 2h"},
		{"replay --since -2h", 2, "without a sign"},
		{"replay --since 1h --until 2h", 2, "must be after --since"},
	} {
		code, stdout, stderr := call(t, s.env, append([]string{"outbox"}, strings.Fields(test.args)...)...)
		if code != test.code || stdout != "" || !strings.Contains(stderr, test.says) {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q; want %d and %q", test.args, code, stdout, stderr, test.code, test.says)
		}
	}
	// What is changed is not for the environment to say.
	env := map[string]string{"ONCEMILL_ALL": "true", "ONCEMILL_YES": "true", "ONCEMILL_TOPIC": "orders", "ONCEMILL_SINCE": "24h", "ONCEMILL_UUID": "reminder-7"}
	env["ONCEMILL_DATABASE_URL"] = s.env["ONCEMILL_DATABASE_URL"]
	for _, name := range []string{"retry", "drop", "cancel", "replay"} {
		if code, _, stderr := call(t, env, "outbox", name); code != 2 {
			t.Errorf("%s: exit code %d, %s", name, code, stderr)
		}
	}
	if n := s.count("outbox") + s.count("scheduled") + s.count("published"); n != 12 {
		t.Errorf("%d rows are left, want all 12", n)
	}
}

// On the schema before, what was there is listed, retried and dropped, and the rest says
// what it needs.
func TestOutboxCommandsOnSchema5(t *testing.T) {
	t.Parallel()
	s := newTables(t)
	_, err := s.db.Exec(`DROP TABLE oncemill.published; DROP TABLE oncemill.scheduled; DROP INDEX oncemill.outbox_parked; DROP INDEX oncemill.outbox_held;
		DROP INDEX oncemill.outbox_keyed; DELETE FROM oncemill.schema_version WHERE version = 6`)
	must(t, err)
	for _, args := range [][]string{{"list", "--scheduled"}, {"cancel", "--uuid", "u"}, {"replay", "--since", "1h"}, {"replay", "--since", "1h", "--dry-run"}} {
		code, _, stderr := call(t, s.env, append([]string{"outbox"}, args...)...)
		if code != 1 || !strings.Contains(stderr, "schema version 6") || !strings.Contains(stderr, "oncemill migrate") {
			t.Errorf("%v: exit code %d, %s", args, code, stderr)
		}
	}
	out, _ := s.run("outbox")
	if !strings.Contains(out, "none before schema version 6 (run oncemill migrate)") || !slices.Contains(strings.Fields(out), "parked") {
		t.Errorf("got\n%s", out)
	}
	out, _ = s.run("outbox", "list")
	if !strings.Contains(out, "4 parked messages") {
		t.Errorf("got\n%s", out)
	}
	s.run("outbox", "drop", "--id", "1", "--yes")
	if s.run("outbox", "retry", "--all"); s.count("outbox WHERE parked_at IS NULL") != 6 {
		t.Errorf("%d are not parked", s.count("outbox WHERE parked_at IS NULL"))
	}
}

func TestOutboxReplayPutsBackWhatItSays(t *testing.T) {
	t.Parallel()
	s := newTables(t)
	out, _ := s.run("outbox", "replay", "--since", "3h", "--until", "1h", "--dry-run")
	if !strings.HasPrefix(out, "2 kept messages would be published again (--since ") || s.count("published") != 3 {
		t.Errorf("got %s", out)
	}
	flags := regexp.MustCompile(`--since \S+ --until [^\s)]+`).FindString(out)
	out, _ = s.run(append([]string{"outbox", "replay"}, strings.Fields(flags)...)...)
	if !strings.HasPrefix(out, "2 kept messages are in the outbox again") || s.count("published") != 1 || s.count("outbox WHERE id > 7") != 2 {
		t.Errorf("got %s", out)
	}
	out, _ = s.run("outbox", "replay", "--since", "1us")
	if !strings.HasPrefix(out, "0 kept messages") {
		t.Errorf("got %s", out)
	}
}
