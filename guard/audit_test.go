package guard_test

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// fill claims ids 1 to n, by two agents, with three actions, at most two at one time.
func (s *site) fill(n int) {
	s.t.Helper()
	s.exec(`
INSERT INTO oncemill.claims (consumer, key, token, attempts, claimed_at, lease_until, effect_until, settled_at, outcome, action, agent, amount, currency)
SELECT 'guard', 'id-' || i, nextval('oncemill.tokens'), 1, to_timestamp(1000000 + i / 2), to_timestamp(2000000000 + i), to_timestamp(2000000000 + i),
	CASE WHEN i % 4 = 3 THEN to_timestamp(1000100 + i) END, CASE WHEN i % 4 = 3 THEN 'settled' END,
	'action-' || i % 3, CASE WHEN i % 2 = 0 THEN 'even' END, 10 * i, 'EUR'
FROM generate_series(1, $1) AS i`, n)
}

// ids are those that a test fills in, in the order of a list.
func ids(numbers ...int) (all []any) {
	for _, n := range numbers {
		all = append(all, fmt.Sprintf("id-%d", n))
	}
	return all
}

func TestAuditFilters(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.fill(12)
	s.exec(`UPDATE oncemill.claims SET lease_until = to_timestamp(1000100) WHERE key IN ('id-1', 'id-2')`)
	s.exec(`UPDATE oncemill.claims SET settled_at = to_timestamp(1000200), outcome = 'failed', reason = 'declined' WHERE key IN ('id-8', 'id-9')`)
	for query, want := range map[string][]any{
		"":                                  ids(12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1),
		"agent_id=even":                     ids(12, 10, 8, 6, 4, 2),
		"agent_id=odd":                      nil,
		"action=action-0":                   ids(12, 9, 6, 3),
		"status=COMMITTED":                  ids(11, 7, 3),
		"status=FAILED":                     ids(9, 8),
		"status=PENDING":                    ids(12, 10, 6, 5, 4, 2, 1),
		"status=IN_DOUBT":                   ids(2, 1),
		"from_ts=1000005":                   ids(12, 11, 10),
		"to_ts=1000001":                     ids(3, 2, 1),
		"from_ts=1000001&to_ts=1000002.5":   ids(5, 4, 3, 2),
		"from_ts=1e6&to_ts=1000000":         ids(1),
		"from_ts=-200000000000&to_ts=-1e11": nil,
		"from_ts=200000000000":              nil,
		"agent_id=even&status=FAILED":       ids(8),
		"action=action-0&status=COMMITTED":  ids(3),
		"agent_id=even&action=action-1":     ids(10, 4),
		"action=action-2&from_ts=1000003":   ids(11, 8),
		"agent_id=even&limit=2":             ids(12, 10),
		"agent_id=even&limit=2&offset=2":    ids(8, 6),
		"agent_id=even&offset=5":            ids(2),
		"offset=100000":                     nil,
		"status=IN_DOUBT&agent_id=even":     ids(2),
		"unknown=1&limit=1":                 ids(12),
		"agent_id=&action=&tenant=&to_ts=1e7&limit=1&action=": nil, // twice
	} {
		got := s.get("/audit?"+query, asAuditor)
		if strings.HasSuffix(query, "&action=") {
			got.invalid("query", "action", "once")
			continue
		}
		// Two that are claimed at one time come by their ids, which are texts.
		slices.SortStableFunc(want, func(a, b any) int { return number(b)/2 - number(a)/2 })
		sorted := slices.Clone(want)
		slices.SortFunc(sorted, func(a, b any) int {
			if n := number(b)/2 - number(a)/2; n != 0 {
				return n
			}
			return strings.Compare(b.(string), a.(string))
		})
		if strings.Contains(query, "limit") || strings.Contains(query, "offset") {
			sorted = want
		}
		got.lists("request_id", sorted...)
	}
	s.get("/audit?agent_id=even&limit=2&offset=2", asAuditor).is(200, `{"items":["*","*"],"total":6,"limit":2,"offset":2,"next_cursor":"*"}`)
	s.get("/audit?status=FAILED&limit=1", asAuditor).lists("amount", "90").lists("currency", "EUR").lists("reason", "declined").lists("committed_at", 1000200.0)
}

func number(id any) (n int) {
	_, _ = fmt.Sscanf(id.(string), "id-%d", &n)
	return n
}

// Whichever way one turns the pages, and whatever was claimed at one time: every claim is
// on one of them, and on one only.
func TestAuditPages(t *testing.T) {
	t.Parallel()
	tenants, keys := withTenants(t)
	s := newSite(t, tenants)
	s.fill(30)
	// What two tenants claim by one statement has one time, and may have one id.
	s.exec(`UPDATE oncemill.claims SET claimed_at = to_timestamp(1000000)`)
	s.exec(`INSERT INTO oncemill.claims SELECT (jsonb_populate_record(c, jsonb_build_object('consumer', 'guard/' || tenant))).* FROM oncemill.claims AS c, unnest(ARRAY['acme', 'globex']) AS tenant`)
	all := func(limit int, as string) (pages map[any]int) {
		pages = make(map[any]int)
		next := any("")
		for next != nil {
			target := fmt.Sprintf("/audit?limit=%d", limit)
			if next != "" {
				target += "&cursor=" + url.QueryEscape(next.(string))
			}
			list := s.get(target, as)
			ids, names := list.items("request_id"), list.items("tenant")
			for i := range ids {
				pages[fmt.Sprint(names[i], ids[i])]++
			}
			next = list.fields()["next_cursor"]
		}
		return pages
	}
	for _, limit := range []int{1, 7, 1000} {
		for as, want := range map[string]int{asAuditor: 90, keys["acme"]: 30} {
			got := all(limit, as)
			for id, n := range got {
				if n != 1 {
					t.Errorf("limit %d: %v is on %d pages", limit, id, n)
				}
			}
			if len(got) != want {
				t.Errorf("limit %d: the pages have %d claims, want %d", limit, len(got), want)
			}
		}
	}
	var offsets []string
	for offset := 0; offset < 90; offset += 7 {
		list := s.get(fmt.Sprintf("/audit?limit=7&offset=%d", offset), asAuditor)
		for i, id := range list.items("request_id") {
			offsets = append(offsets, fmt.Sprint(list.items("tenant")[i], id))
		}
	}
	if slices.Sort(offsets); len(offsets) != 90 || len(slices.Compact(offsets)) != 90 {
		t.Errorf("by offset there are %d claims", len(offsets))
	}
}

// Counting goes on up to a number; a list of more says that it is one.
func TestAuditCountsUpToANumber(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.fill(10001)
	s.get("/audit?limit=1", asAuditor).is(200, `{"items":["*"],"total":10000,"total_is_at_least":true,"limit":1,"offset":0,"next_cursor":"*"}`)
	s.get("/audit?limit=1&from_ts=1000000.5", asAuditor).is(200, `{"items":["*"],"total":10000,"limit":1,"offset":0,"next_cursor":"*"}`)
}

// Claims of Once are none of the guard's.
func TestAuditLeavesOtherClaimsAlone(t *testing.T) {
	t.Parallel()
	s := newSite(t, legacy)
	s.exec(`INSERT INTO oncemill.claims (consumer, key) VALUES ('guard', 'once'), ('billing', 'x')`)
	s.get("/audit").is(200, `{"items":[],"rows":[],"total":0,"limit":100,"offset":0,"next_cursor":null}`)
	s.post("/sweep", "").is(200, `{"swept":0,"stale_pending":0,"requires_reconciliation":false,"action":"none"}`)
}

func TestAListNamesTheParameterThatIsWrong(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	long := strings.Repeat("x", 513)
	both := map[string]string{
		"limit=0": "limit", "limit=1001": "limit", "limit=": "limit", "limit=x": "limit", "limit=1.5": "limit", "limit=99999999999999999999": "limit",
		"cursor=": "cursor", "cursor=x": "cursor", "cursor=MTc": "cursor", "cursor=%00": "cursor", "cursor=OTk5OTk5OTk5OTk5OTk5OTk5OSB4": "cursor",
		"from_ts=": "from_ts", "from_ts=yesterday": "from_ts", "from_ts=NaN": "from_ts", "from_ts=inf": "from_ts", "from_ts=1e12": "from_ts", "to_ts=-1e300": "to_ts",
		"agent_id=" + long: "agent_id", "action=" + long: "action", "agent_id=%00": "agent_id", "action=%ff": "action", "tenant=%00": "tenant",
		"limit=1&limit=1": "limit", "tenant=a": "tenant", "agent_id=%zz": "", "a=1;b=2": "",
	}
	for query, parameter := range both {
		s.get("/audit?"+query, asAuditor).invalid("query", parameter, "")
		s.get("/events?"+query, asAuditor).invalid("query", parameter, "")
		s.get("/events?format=ndjson&"+query, asAuditor).invalid("query", parameter, "")
	}
	for query, parameter := range map[string]string{
		"status=": "status", "status=pending": "status", "offset=-1": "offset", "offset=100001": "offset",
		"offset=1&cursor=MSB4": "offset",
	} {
		s.get("/audit?"+query, asAuditor).invalid("query", parameter, "")
	}
	for query, parameter := range map[string]string{
		"kind=": "kind", "kind=blocked%20": "kind", "order=up": "order", "format=csv": "format", "request_id=" + long: "request_id",
		"currency=%00": "currency", "actor=%ff": "actor", "min_amount=": "min_amount", "min_amount=1e3": "min_amount", "max_amount=one": "max_amount",
		"max_amount=" + strings.Repeat("9", 31): "max_amount", "min_amount='": "min_amount", "cursor=MSB4": "cursor", // not a number
	} {
		s.get("/events?"+query, asAuditor).invalid("query", parameter, "")
	}
	s.get("/summary?from_ts=x&to_ts=1", asAuditor).invalid("query", "from_ts", "")
}
