package guard_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// fillEvents writes events 1 to n, three at one time, with ids in their order.
func (s *site) fillEvents(n int) {
	s.t.Helper()
	s.exec(`
INSERT INTO oncemill.events (consumer, key, kind, at, token, actor, action, agent, amount, currency, payload)
SELECT 'guard', 'id-' || i % 5, (ARRAY['claimed', 'blocked', 'settled', 'refused'])[1 + i % 4], to_timestamp(1000000 + i / 3), i, 'actor-' || i % 2,
	'action-' || i % 3, 'agent-' || i % 4, i * 1.5, CASE WHEN i % 2 = 0 THEN 'EUR' ELSE 'USD' END, ('{"n":' || i || '}')::bytea
FROM generate_series(1, $1) AS i ORDER BY i`, n)
}

func attempts(numbers ...int) (all []any) {
	for _, n := range numbers {
		all = append(all, n)
	}
	return all
}

func TestEventFilters(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.fillEvents(12)
	for query, want := range map[string][]any{
		"":                            attempts(12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1),
		"order=desc&limit=2":          attempts(12, 11),
		"order=asc&limit=3":           attempts(1, 2, 3),
		"kind=blocked":                attempts(9, 5, 1),
		"kind=dead":                   nil,
		"request_id=id-2":             attempts(12, 7, 2),
		"agent_id=agent-3":            attempts(11, 7, 3),
		"action=action-1":             attempts(10, 7, 4, 1),
		"actor=actor-1&limit=2":       attempts(11, 9),
		"currency=EUR&order=asc":      attempts(2, 4, 6, 8, 10, 12),
		"min_amount=15":               attempts(12, 11, 10),
		"max_amount=4.50":             attempts(3, 2, 1),
		"min_amount=3&max_amount=4.4": attempts(2),
		"max_amount=-1":               nil,
		"from_ts=1000003.9":           attempts(12),
		"to_ts=1000000.5&order=asc":   attempts(1, 2),
		"kind=blocked&currency=USD&min_amount=2&agent_id=agent-1&request_id=id-0&action=action-2": attempts(5),
		"cursor=" + url.QueryEscape(cursorAfter(t, s)):                                            attempts(10, 9, 8, 7, 6, 5, 4, 3, 2, 1),
	} {
		s.get("/events?"+query, asAuditor).lists("attempt", want...)
		if !strings.Contains(query, "limit=") {
			if got := s.export("/events?format=ndjson&limit=1&" + query); mustJSON(t, got) != mustJSON(t, want) {
				t.Errorf("%s: exported %v, want %v", query, got, want)
			}
		}
	}
	s.get("/events?limit=1", asAuditor).is(200, `{"items":[{"id":"*","at":1000004.000000,"kind":"claimed","request_id":"id-2","agent_id":"agent-0","action":"action-0","tenant":null,
		"amount":"18.0","currency":"EUR","note":null,"actor":"actor-0","attempt":12,"payload":{"n":12},"result":null}],"next_cursor":"*"}`)
}

func cursorAfter(t *testing.T, s *site) string {
	t.Helper()
	next, _ := s.get("/events?limit=2", asAuditor).fields()["next_cursor"].(string)
	return next
}

// export reads all lines of an export, and returns their attempts.
func (s *site) export(target string) (numbers []any) {
	s.t.Helper()
	got := s.get(target, asAuditor)
	if got.header.Get("Content-Type") != "application/x-ndjson" {
		s.t.Fatalf("%s: content type %q: %s", target, got.header.Get("Content-Type"), got.body)
	}
	for line := range bytes.Lines(got.body) {
		var event map[string]any
		noError(s.t, json.Unmarshal(line, &event))
		wantSchema(s.t, target, at(description(), "components", "schemas", "Event"), any(event))
		numbers = append(numbers, event["attempt"])
	}
	return numbers
}

// The pages have every event once, in both orders, whatever happened at one time.
func TestEventPages(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const n = 50
	s.fillEvents(n)
	for _, order := range []string{"asc", "desc"} {
		for _, limit := range []int{1, 7, n, n + 1} {
			next, want := any(""), 1
			for next != nil {
				target := fmt.Sprintf("/events?order=%s&limit=%d", order, limit)
				if next != "" {
					target += "&cursor=" + url.QueryEscape(next.(string))
				}
				page := s.get(target, asAuditor)
				for _, attempt := range page.items("attempt") {
					expected := want
					if order == "desc" {
						expected = n + 1 - want
					}
					if attempt != float64(expected) {
						t.Fatalf("%s, limit %d: event %v, want %d", order, limit, attempt, expected)
					}
					want++
				}
				next = page.fields()["next_cursor"]
			}
			if want != n+1 {
				t.Errorf("%s, limit %d: the pages have %d events", order, limit, want-1)
			}
		}
	}
}

// An export has more than a page, and from old to new leaves out what is not old enough
// for the next one to begin behind it.
func TestAnExportHasAllEvents(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.fillEvents(2500)
	s.claim("now")
	for order, first := range map[string]float64{"asc": 1, "desc": -1} {
		got := s.export("/events?format=ndjson&order=" + order)
		if order == "desc" {
			got = got[1:] // that of now
			first = 2500
		}
		if len(got) != 2500 || got[0] != first {
			t.Errorf("%s: exported %d events, the first %v", order, len(got), got[0])
		}
	}
	if got := s.export("/events?format=ndjson&kind=dead"); len(got) != 0 {
		t.Errorf("exported %v", got)
	}
}

// Whoever reads an export that breaks off can tell that it has.
func TestAnExportThatBreaksOffIsSeenToHave(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.fillEvents(5000)
	gate := newGate(t, s.url)
	g := s.at(gate.url)
	response, err := g.client.Do(g.request(http.MethodGet, "/events?format=ndjson", "", asAuditor))
	noError(t, err)
	defer response.Body.Close()
	// As long as nobody reads, no more than the buffers' size is sent.
	gate.close()
	text, err := io.ReadAll(response.Body)
	if lines := bytes.Count(text, []byte("\n")); err == nil || lines == 0 || lines >= 5000 {
		t.Errorf("read %d lines and the error %v", lines, err)
	}
	g.get("/events?format=ndjson", asAuditor).refused(503, "unavailable", "the database is not available at the moment")
}

// A page of large events is shorter, and the next one goes on where it ends.
func TestAPageHasNoMoreThanSomeMegabytes(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const n = 300
	s.fillEvents(n)
	s.exec(`UPDATE oncemill.events SET payload = convert_to('"' || repeat('x', 60000) || '"', 'UTF8')`)
	for _, order := range []string{"asc", "desc"} {
		next, seen := any(""), 0
		for next != nil {
			target := "/events?limit=1000&order=" + order
			if next != "" {
				target += "&cursor=" + url.QueryEscape(next.(string))
			}
			page := s.get(target, asAuditor)
			if len(page.body) > 5<<20 {
				t.Errorf("a page has %d bytes", len(page.body))
			}
			seen += len(page.items("attempt"))
			next = page.fields()["next_cursor"]
		}
		if seen != n {
			t.Errorf("%s: the pages have %d events, want %d", order, seen, n)
		}
	}
	if got := s.export("/events?format=ndjson"); len(got) != n {
		t.Errorf("exported %d events, want %d", len(got), n)
	}
}

func TestTheSummaryAddsUpWhatWasBlocked(t *testing.T) {
	t.Parallel()
	tenants, keys := withTenants(t)
	s := newSite(t, tenants)
	s.exec(`
INSERT INTO oncemill.events (consumer, key, kind, at, action, agent, amount, currency)
VALUES ('guard/acme', 'a', 'blocked', to_timestamp(1000), 'buy', 'bot-1', 100.10, 'USD'),
	('guard/acme', 'a', 'blocked', to_timestamp(1000), 'buy', 'bot-1', 100.10, 'USD'), -- it has asked again
	('guard/acme', 'a', 'blocked', to_timestamp(1000), 'buy', 'bot-3', 99, 'USD'),
	('guard/acme', 'test:a', 'blocked', to_timestamp(1000), 'buy', 'bot-3', 99, 'USD'),
	('guard/acme', 'b', 'conflict', to_timestamp(1001), 'buy', 'bot-2', 0.20, 'USD'),
	('guard/acme', 'c', 'blocked', to_timestamp(1002), 'buy', 'bot-1', 7, 'EUR'),
	('guard/acme', 'd', 'blocked', to_timestamp(1003), 'sell', NULL, NULL, NULL),
	('guard/acme', 'e', 'refused', to_timestamp(1003), 'sell', NULL, 5, 'USD'),
	('guard/acme', 'e', 'claimed', to_timestamp(1003), 'sell', NULL, 5, 'USD'),
	('guard/globex', 'a', 'blocked', to_timestamp(1003), 'buy', 'bot-1', 1, 'USD'),
	('billing', 'a', 'blocked', to_timestamp(1003), 'buy', 'bot-1', 1, 'USD')`)
	row := func(tenant, action, currency string, blocked, effects int, amount string) string {
		quoted := "null"
		if currency != "" {
			quoted = `"` + currency + `"`
		}
		return fmt.Sprintf(`{"tenant":%q,"action":%q,"currency":%s,"blocked":%d,"effects":%d,"amount":%q}`, tenant, action, quoted, blocked, effects, amount)
	}
	eur, usd := row("acme", "buy", "EUR", 1, 1, "7"), row("acme", "buy", "USD", 4, 2, "100.30")
	sold, theirs := row("acme", "sell", "", 1, 1, "0"), row("globex", "buy", "USD", 1, 1, "1")
	s.get("/summary", keys["acme"]).is(200, `{"items":[`+eur+`,`+usd+`,`+sold+`],"blocked":6,"effects":4}`)
	s.get("/summary", asAuditor).is(200, `{"items":[`+eur+`,`+usd+`,`+sold+`,`+theirs+`],"blocked":7,"effects":5}`)
	s.get("/summary?tenant=globex", asAuditor).is(200, `{"items":[`+theirs+`],"blocked":1,"effects":1}`)
	s.get("/summary?action=sell", asAuditor).is(200, `{"items":[`+sold+`],"blocked":1,"effects":1}`)
	s.get("/summary?agent_id=bot-2", asAuditor).is(200, `{"items":[`+row("acme", "buy", "USD", 1, 1, "0.20")+`],"blocked":1,"effects":1}`)
	s.get("/summary?from_ts=1002&to_ts=1002.5", asAuditor).is(200, `{"items":[`+eur+`],"blocked":1,"effects":1}`)
	s.get("/summary?from_ts=2000", asAuditor).is(200, `{"items":[],"blocked":0,"effects":0}`)
	s.get("/summary?from=1002", asAuditor).invalid("query", "from", "from_ts")
	s.get("/events?from=1002", asAuditor).invalid("query", "from", "from_ts")
}

// What is stored may be from elsewhere, and no JSON.
func TestAResultThatIsNoJSONIsShownAsText(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	token := s.claim("a")
	s.exec(`UPDATE oncemill.claims SET settled_at = now(), outcome = 'settled', result = 'ch_1 <&> "x"' WHERE key = 'a'`)
	s.post("/claim", `{"request_id":"a","action":"charge"}`, token).is(200, `{"status":"SKIP","request_id":"a","agent_id":null,"existing":"ch_1 <&> \"x\""}`)
	s.get("/audit", asAuditor).lists("result", `ch_1 <&> "x"`)
	s.exec(`UPDATE oncemill.claims SET result = '\xff'`)
	s.get("/audit", asAuditor).lists("result", "\uFFFD")
	s.exec(`UPDATE oncemill.claims SET result = '\x22ff22'`)
	s.get("/audit", asAuditor).lists("result", "\"\uFFFD\"")
	deep := strings.Repeat("[", 9999) + strings.Repeat("]", 9999)
	s.exec(`UPDATE oncemill.claims SET result = $1`, []byte(deep))
	s.get("/audit", asAuditor).lists("result", deep)
}
