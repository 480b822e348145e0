package client_test

import (
	"fmt"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oncemill/oncemill/guard/client"
)

func TestAuditReadsPageByPage(t *testing.T) {
	t.Parallel()
	c, s := serve(t,
		says(200, `{"items":[{"request_id":"order:9","action":"charge","status":"COMMITTED","result":{"receipt":"r9"},"claimed_at":1716780000.123456,"committed_at":1716780001,
			"agent_id":null,"in_doubt":false,"reason":null,"attempt":12,"lease_until":1716780300.5,"amount":"452.00","currency":"USD","tenant":"acme"}],
			"total":2,"limit":1,"offset":0,"next_cursor":"c1"}`),
		lost,
		says(200, `{"items":[{"request_id":"order:8","action":"charge","status":"PENDING","result":null,"claimed_at":1716770000,"committed_at":null,
			"agent_id":"bot-1","in_doubt":true,"reason":"its lease was over","attempt":11,"lease_until":1716770300,"amount":null,"currency":null,"tenant":null}],
			"total":2,"limit":1,"offset":0,"next_cursor":null}`))
	c.AuditToken = "the-operators-token"
	query := client.AuditQuery{Agent: "bot 1", Action: "charge", Status: "COMMITTED", From: time.UnixMicro(1716770000000001), Tenant: "acme", PageSize: 1}
	var got []client.AuditItem
	for item, err := range c.Audit(t.Context(), query) {
		must(t, err)
		got = append(got, item)
	}
	if len(got) != 2 {
		t.Fatalf("got %v", got)
	}
	first := got[0]
	if first.ID != "order:9" || first.Action != "charge" || first.Status != "COMMITTED" || string(first.Result) != `{"receipt":"r9"}` || first.Attempt != 12 ||
		!first.ClaimedAt.Equal(time.UnixMicro(1716780000123456)) || !first.CommittedAt.Equal(time.Unix(1716780001, 0)) ||
		!first.LeaseUntil.Equal(time.UnixMilli(1716780300500)) || first.Amount != "452.00" || first.Currency != "USD" || first.Tenant != "acme" || first.Agent != "" {
		t.Errorf("got %+v", first)
	}
	if second := got[1]; !second.InDoubt || second.Reason != "its lease was over" || second.Result != nil || !second.CommittedAt.IsZero() || second.Agent != "bot-1" || second.Amount != "" {
		t.Errorf("got %+v", second)
	}
	asked := map[string]string{"agent_id": "bot 1", "action": "charge", "status": "COMMITTED", "from_ts": "1716770000.000001", "tenant": "acme", "limit": "1"}
	for i, r := range s.requests() {
		if i > 0 {
			asked["cursor"] = "c1"
		}
		if !maps.Equal(flat(r), asked) || r.path != "/audit" || r.header.Get("X-SafeAgent-Audit-Token") != "the-operators-token" {
			t.Errorf("request %d asks for %v with %v", i, flat(r), r.header)
		}
	}
}

func flat(r seen) map[string]string {
	values := make(map[string]string)
	for name, value := range r.query {
		values[name] = fmt.Sprint(value[0])
	}
	return values
}

func TestEventsReadPageByPage(t *testing.T) {
	t.Parallel()
	c, s := serve(t,
		says(200, `{"items":[{"id":7,"at":1716780000.5,"kind":"blocked","request_id":"order:9","agent_id":"bot-2","action":"charge","tenant":"acme","amount":"452.00","currency":"USD",
			"note":"effect has happened","actor":"key k1","attempt":12,"payload":{"n":1},"result":null}],"next_cursor":"c1"}`),
		says(200, `{"items":[],"next_cursor":null}`))
	query := client.EventQuery{
		Kind: "blocked", ID: "order:9", Agent: "bot-2", Action: "charge", Currency: "USD", MinAmount: "1", MaxAmount: "1000",
		To: time.Unix(1716790000, 0), Ascending: true, PageSize: 1,
	}
	all := c.Events(t.Context(), query)
	for range 2 { // the same again
		n := 0
		for e, err := range all {
			must(t, err)
			if n++; e.Number != 7 || e.Kind != "blocked" || e.ID != "order:9" || e.Agent != "bot-2" || e.Action != "charge" || e.Tenant != "acme" || e.Amount != "452.00" || e.Currency != "USD" ||
				e.Note != "effect has happened" || e.Actor != "key k1" || e.Attempt != 12 || string(e.Payload) != `{"n":1}` || e.Result != nil || !e.At.Equal(time.UnixMilli(1716780000500)) {
				t.Errorf("got %+v", e)
			}
		}
		if want := 1; n > want {
			t.Errorf("got %d events", n)
		}
	}
	asked := map[string]string{
		"kind": "blocked", "request_id": "order:9", "agent_id": "bot-2", "action": "charge", "currency": "USD", "min_amount": "1", "max_amount": "1000",
		"to_ts": "1716790000.000000", "order": "asc", "limit": "1",
	}
	requests := s.requests()
	for _, i := range []int{0, 2} {
		if !maps.Equal(flat(requests[i]), asked) || requests[i].header.Get("X-SafeAgent-Api-Key") != apiKey {
			t.Errorf("request %d asks for %v", i, flat(requests[i]))
		}
	}
	if requests[1].query["cursor"][0] != "c1" {
		t.Errorf("got %v", requests[1].query)
	}
}

func TestReadingEndsWithAnError(t *testing.T) {
	t.Parallel()
	page := `{"items":[{"id":1,"kind":"claimed"}],"next_cursor":"c1"}`
	for _, test := range []struct {
		answers []answer
		items   int
		want    error
	}{
		{[]answer{says(200, page), problem(403, "audit_token", "audit access required")}, 1, client.ErrDenied},
		{[]answer{problem(422, "invalid", "no such kind")}, 0, client.ErrInvalid},
		{[]answer{says(200, page), says(503, "")}, 1, client.ErrUnavailable},
		{[]answer{says(200, page)}, 2, client.ErrUnavailable}, // the cursor leads to itself
	} {
		synctest.Test(t, func(t *testing.T) {
			c, _ := imagine(0, test.answers...)
			items := 0
			var last error
			for _, err := range c.Events(t.Context(), client.EventQuery{}) {
				if last != nil {
					t.Fatalf("something comes after %v", last)
				}
				if last = err; err == nil {
					items++
				}
			}
			if e := want(t, last, test.want); items != test.items || e.Op != client.OpEvents {
				t.Errorf("got %d items and %v", items, last)
			}
		})
	}
	c := client.Client{}
	for _, err := range c.Audit(t.Context(), client.AuditQuery{}) {
		want(t, err, client.ErrInvalid)
	}
}

func TestWhoHasSeenEnoughAsksForNoMore(t *testing.T) {
	t.Parallel()
	c, s := serve(t, says(200, `{"items":[{"id":1},{"id":2}],"next_cursor":"c1"}`))
	for _, err := range c.Events(t.Context(), client.EventQuery{}) {
		must(t, err)
		break
	}
	wantSteps(t, s, "events")
}
