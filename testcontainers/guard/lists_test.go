package guard_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill/testcontainers"
)

// How much there is to be listed: claims, two events of each, and refusals of some.
const (
	manyClaims = 300_000
	oneInDoubt = 3000 // claims
	oneFailed  = 1000
	oneBlocked = 100
	oneRare    = 30_000
	agents     = 100
	actions    = 20
	days       = 30
)

// fill writes claims of the last days, at even distances. Indexes are made afterwards, as
// that takes a fraction of the time.
func (s *site) fill() {
	s.t.Helper()
	indexes := s.texts(`SELECT indexdef FROM pg_indexes WHERE schemaname = 'oncemill' AND tablename IN ('claims', 'events') AND indexname NOT LIKE '%_pkey'`)
	for _, name := range s.texts(`SELECT indexname FROM pg_indexes WHERE schemaname = 'oncemill' AND tablename IN ('claims', 'events') AND indexname NOT LIKE '%_pkey'`) {
		s.exec(`DROP INDEX oncemill.` + name)
	}
	values := fmt.Sprintf(`SELECT n, 'order:' || lpad(n::text, 8, '0') AS key, now() - interval '%d days' + n * (interval '%d days' / %d) AS at,
		n %% %d = 7 AS doubted, n %% %d = 3 AS failed, n %% %d = 5 AS blocked,
		CASE WHEN n %% %d = 11 THEN 'rare' ELSE 'action-' || n %% %d END AS action, 'agent-' || n * 7919 %% %d AS agent,
		CASE WHEN n %% 10 = 5 THEN (n %% 1000)::numeric END AS amount, CASE WHEN n %% 10 = 5 THEN 'USD' END AS currency
		FROM generate_series(1::bigint, %d) AS n`,
		days, days, manyClaims, oneInDoubt, oneFailed, oneBlocked, oneRare, actions, agents, manyClaims)
	// Others share the table, and have written to it before.
	s.exec(`INSERT INTO oncemill.claims (consumer, key, settled_at) SELECT 'billing', n::text, now() - interval '40 days' FROM generate_series(1, $1) AS n`, manyClaims/2)
	s.exec(`INSERT INTO oncemill.claims (consumer, key, token, attempts, claimed_at, lease_until, effect_until, settled_at, outcome,
			action, agent, scope, amount, currency, result)
		SELECT 'guard', key, n, 1, at, at + interval '5 minutes', at + interval '5 minutes', CASE WHEN NOT doubted THEN at + interval '1 second' END,
			CASE WHEN doubted THEN NULL WHEN failed THEN 'failed' ELSE 'settled' END, action, agent, 'scope-' || n % 1000, amount, currency, '{}'
		FROM (` + values + `) AS v`)
	s.exec(`INSERT INTO oncemill.events (at, consumer, key, kind, token, actor, action, agent, amount, currency)
		SELECT at + nth * interval '1 second', 'guard', key, CASE nth WHEN 0 THEN 'claimed' WHEN 2 THEN 'blocked'
			ELSE CASE WHEN doubted THEN 'in doubt' WHEN failed THEN 'failed' ELSE 'settled' END END, n, 'a process', action, agent, amount, currency
		FROM (` + values + `) AS v, generate_series(0, 2) AS nth WHERE nth < 2 OR blocked`)
	for _, index := range indexes {
		s.exec(index)
	}
	s.exec(`VACUUM ANALYZE oncemill.claims, oncemill.events`)
}

// A list is one way to ask for claims or events.
type list struct {
	path string
	rows int // how many rows may be looked at for it: a page, or what is counted up to
}

// What a page may cost: its own rows, and those that are counted; or twice as many where
// two conditions meet.
const (
	aPage  = 2 * 1000
	aCount = 10_001 + aPage
)

// aDay is what restricts a list to a day in the middle.
func aDay() string {
	from := time.Now().Add(-days / 2 * 24 * time.Hour)
	return fmt.Sprintf("&from_ts=%d&to_ts=%d", from.Unix(), from.Add(24*time.Hour).Unix())
}

func listsOfClaims() []list {
	return []list{
		{"/audit?", aCount},
		{"/audit?limit=1000", aCount},
		{"/audit?offset=5000", aCount + 5000},
		{"/audit?request_id=order%3A00012345", aCount},
		{"/audit?action=action-3", aCount},
		{"/audit?action=rare", aCount},
		{"/audit?agent_id=agent-5", aCount},
		{"/audit?agent_id=agent-5&action=action-5", aCount},
		{"/audit?status=PENDING", aCount},
		{"/audit?status=IN_DOUBT", aCount},
		{"/audit?status=COMMITTED", aCount + 100},
		{"/audit?status=FAILED", aCount},
		{"/audit?status=FAILED&agent_id=agent-5", aCount},
		{"/audit?status=IN_DOUBT&action=action-7", aCount},
		{"/audit?limit=100" + aDay(), aCount},
		{"/audit?action=action-3" + aDay(), aCount},
		{"/audit?action=nothing", aCount},
		{"/audit?agent_id=nobody", aCount},
	}
}

func listsOfEvents() []list {
	return []list{
		{"/events?", aPage},
		{"/events?limit=1000", aPage},
		{"/events?kind=claimed", aPage},
		{"/events?kind=settled", aPage},
		{"/events?kind=blocked", aPage},
		{"/events?kind=failed", aPage},
		{"/events?kind=in+doubt", aPage},
		{"/events?kind=conflict", aPage},
		{"/events?kind=extended", aPage},
		{"/events?request_id=order%3A00012345", aPage},
		{"/events?agent_id=agent-5", aPage},
		{"/events?action=rare", aPage},
		{"/events?action=action-5&kind=blocked", 2 * aPage},
		{"/events?min_amount=995", 4 * aPage},
		{"/events?min_amount=100&max_amount=105", 4 * aPage},
		{"/events?currency=USD", aPage},
		{"/events?currency=EUR", aPage},
		{"/events?actor=nobody" + aDay(), 5 * manyClaims / days},
		{"/events?limit=100" + aDay(), aPage},
		{"/events?kind=blocked" + aDay(), aPage},
		{"/summary?" + aDay()[1:], 2 * manyClaims / oneBlocked / days},
		{"/summary?action=action-5", 2 * manyClaims / oneBlocked},
		{"/summary?", 2 * manyClaims / oneBlocked},
	}
}

// Lists of 300,000 claims and 600,000 events are read by indexes, and no more of them than
// a page, from new to old, from old to new, and deep inside.
func TestListsAreReadByIndex(t *testing.T) {
	t.Parallel()
	server := ownPostgres(t)
	database := testcontainers.DatabaseOn(t, server)
	logged := *database
	u, err := url.Parse(database.URL)
	must(t, err)
	query := u.Query()
	query.Set("log_min_duration_statement", "0") // in the guards' sessions only
	u.RawQuery = query.Encode()
	logged.URL = u.String()
	s := siteOn(t, &logged)
	begun := time.Now()
	s.fill()
	t.Logf("it took %v to fill the tables", time.Since(begun).Round(time.Millisecond))
	statements, lists := 0, append(listsOfClaims(), listsOfEvents()...)
	for _, l := range lists {
		paths := []string{l.path}
		if strings.HasPrefix(l.path, "/events") {
			paths = append(paths, l.path+"&order=asc")
		}
		for _, path := range paths {
			t.Run(path, func(t *testing.T) {
				next := s.look(t, server, l.rows, path, &statements)
				if next != "" && !strings.Contains(path, "offset") {
					s.look(t, server, l.rows, path+"&cursor="+url.QueryEscape(next), &statements)
				}
			})
		}
	}
	for path, cursor := range deepCursors(t, s) {
		t.Run(path+" deep inside", func(t *testing.T) {
			s.look(t, server, aCount, path+"&cursor="+url.QueryEscape(cursor), &statements)
		})
	}
	if statements < 2*len(lists) {
		t.Errorf("only %d statements were looked at", statements)
	}
}

// deepCursors are cursors in the middle of long lists, made of those of pages that begin
// there.
func deepCursors(t *testing.T, s *site) map[string]string {
	t.Helper()
	middle := fmt.Sprint(time.Now().Add(-days / 2 * 24 * time.Hour).Unix())
	cursors := make(map[string]string)
	for path, limit := range map[string]string{
		"/audit?": "&to_ts=" + middle, "/audit?action=action-3": "&to_ts=" + middle, "/audit?agent_id=agent-5": "&to_ts=" + middle,
		"/events?": "&to_ts=" + middle, "/events?kind=blocked": "&to_ts=" + middle, "/events?agent_id=agent-5": "&to_ts=" + middle,
		"/events?order=asc": "&from_ts=" + middle, "/events?kind=blocked&order=asc": "&from_ts=" + middle,
	} {
		var page struct {
			NextCursor *string `json:"next_cursor"`
		}
		must(t, s.audits.get(within(t), path+limit, &page))
		if page.NextCursor == nil {
			t.Fatalf("%s ends with its first page", path+limit)
		}
		cursors[path] = *page.NextCursor
	}
	return cursors
}

// look asks for a list, and looks at how Postgres answers the statements that the guard
// sends for it. It returns the cursor of the next page.
func (s *site) look(t *testing.T, server *testcontainers.PostgresServer, most int, path string, statements *int) (next string) {
	t.Helper()
	before, err := server.Log()
	must(t, err)
	var page struct {
		NextCursor string `json:"next_cursor"`
	}
	must(t, s.audits.get(within(t), path, &page))
	after, err := server.Log()
	must(t, err)
	for _, statement := range executed(after[len(before):]) {
		*statements++
		var text string
		if err := s.db.QueryRow("EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) " + statement).Scan(&text); err != nil {
			t.Fatalf("%s\n%v", statement, err)
		}
		var plans []struct{ Plan plan }
		must(t, json.Unmarshal([]byte(text), &plans))
		if rows, scanned := plans[0].Plan.reads(); rows > most || scanned != "" {
			t.Errorf("%s looks at %d rows, want at most %d, and scans the table %q:\n%s\n%s", path, rows, most, scanned, statement, s.explained(statement))
		}
	}
	return page.NextCursor
}

func (s *site) explained(statement string) string {
	return strings.Join(s.texts("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) "+statement), "\n")
}

// A plan is a node of what EXPLAIN says.
type plan struct {
	Node     string  `json:"Node Type"`
	Relation string  `json:"Relation Name"`
	Index    string  `json:"Index Name"`
	Rows     float64 `json:"Actual Rows"`
	Loops    float64 `json:"Actual Loops"`
	Removed  float64 `json:"Rows Removed by Filter"`
	Again    float64 `json:"Rows Removed by Index Recheck"`
	Plans    []plan
}

// reads returns how many rows and entries of indexes are looked at, and which table is
// scanned from its beginning to its end.
func (p plan) reads() (rows int, scanned string) {
	if p.Relation != "" || p.Index != "" {
		rows = int((p.Rows + p.Removed + p.Again) * p.Loops)
	}
	if p.Node == "Seq Scan" {
		scanned = p.Relation
	}
	for _, part := range p.Plans {
		more, also := part.reads()
		rows += more
		scanned += also
	}
	return rows, scanned
}

var (
	execution = regexp.MustCompile(`(?s)LOG:  duration: [0-9.]+ ms  execute <unnamed>: (.*?)\n[^\t]`)
	parameter = regexp.MustCompile(`\$([0-9]+) = ('(?:[^']|'')*'|NULL)`)
	hole      = regexp.MustCompile(`\$[0-9]+`)
)

// executed are the statements on the tables that a log has, with their parameters filled
// in.
func executed(log string) (statements []string) {
	for _, at := range execution.FindAllStringSubmatchIndex(log, -1) {
		statement := log[at[2]:at[3]]
		if !strings.Contains(statement, "SELECT") || !strings.Contains(statement, ".claims") && !strings.Contains(statement, ".events") {
			continue
		}
		values := make(map[string]string)
		rest := log[at[3]+1:]
		detail, _, _ := strings.Cut(rest, "\n")
		if _, parameters, ok := strings.Cut(detail, "DETAIL:  parameters: "); ok {
			for _, p := range parameter.FindAllStringSubmatch(parameters, -1) {
				values["$"+p[1]] = p[2]
			}
		}
		statements = append(statements, hole.ReplaceAllStringFunc(strings.ReplaceAll(statement, "\n\t", "\n"), func(name string) string {
			return values[name]
		}))
	}
	return statements
}
