package guard_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/oncemill/oncemill/testcontainers/internal/actor"
)

// roleVariable makes the test binary play the role that it holds, as JSON.
const roleVariable = "ONCEMILL_TEST_GUARD_ROLE"

// A role is a caller in a process of its own, which claims an id, places an order under
// it, and is killed. It says on its standard output:
//
//	claimed ID TOKEN   it may go on
//	dying ID           it kills itself
type role struct {
	Guard  string // URL
	Broker string // URL
	APIKey string
	ID     string
	Lease  float64 // in seconds
	Before bool    // it dies before the effect, and not after it
}

func play(text string) error {
	var r role
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return err
	}
	var p actor.Player
	c := newCaller(limit, r.Guard)
	if r.APIKey != "" {
		c = c.with("X-SafeAgent-Api-Key", r.APIKey)
	}
	reply, err := c.claim(context.Background(), r.ID, object{"lease_seconds": r.Lease, "agent_id": "victim"})
	if err != nil || reply.Status != "PROCEED" {
		return fmt.Errorf("%s: %w", reply, err)
	}
	p.Say("claimed %s %s", r.ID, reply.Token)
	if !r.Before {
		if status, err := order(c.http, r.Broker, r.ID); err != nil || status != http.StatusOK {
			return fmt.Errorf("the broker answers %d: %w", status, err)
		}
	}
	p.Suffer(false, 0, r.ID)
	return errors.New("still alive")
}

// dies has a caller claim an id at the first guard, make the effect or not, and be killed.
// It returns what the caller was given to settle with.
func (s *site) dies(r role) (token string) {
	s.t.Helper()
	r.Guard, r.Broker = s.guards[0].url, s.broker.url
	if r.Lease == 0 {
		r.Lease = 0.2
	}
	victim := actor.Start(s.t, "the caller", roleVariable, r)
	token = strings.Fields(victim.Await("claimed", 1))[2]
	victim.AwaitDeath()
	return token
}

// A caller is killed between its effect and its settlement. Its claim is in doubt, nothing
// runs again by itself, and an operator says what became of it.
func TestCrashBetweenEffectAndSettle(t *testing.T) {
	t.Parallel()
	const id = "payout/2026/7"
	for verdict, c := range map[string]struct {
		before bool
		status string
		event  string
	}{
		"happened":     {false, "SKIP", "settled"},
		"not happened": {true, "PROCEED", "released"},
		"never":        {true, "SKIP", "failed"},
	} {
		for _, overHTTP := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, over HTTP %t", verdict, overHTTP), func(t *testing.T) {
				t.Parallel()
				s := newSite(t)
				token := s.dies(role{ID: id, Before: c.before})
				attempt := s.awaitDoubt(id)
				for guard := range 2 {
					r := s.claims(guard, id, nil)
					if wantReply(t, r, 200, "PENDING"); !r.InDoubt || r.Reason == "" {
						t.Errorf("it is in doubt, and answered %s", r)
					}
				}
				s.wantStale(1)
				s.wantPlaced(id, map[bool]int{true: 0, false: 1}[c.before])
				s.resolves(id, verdict, attempt, overHTTP)
				s.wantStale(0)
				s.wantNote(id, c.event, note)
				if late := s.ends(0, "settle", id, token, object{"result": object{}}); late.code/100 == 2 {
					t.Errorf("who was taken for dead settles, and is answered %s", late)
				}
				r := s.claims(1, id, nil)
				if wantReply(t, r, 200, c.status); verdict == "never" && (!r.Failed || r.Reason != note) {
					t.Errorf("it never will, and is answered %s", r)
				}
				if r.Status == "PROCEED" {
					s.settles(1, id, r.Token, nil)
				}
				s.wantPlaced(id, map[bool]int{true: 0, false: 1}[verdict == "never"])
				s.audit()
			})
		}
	}
}

const note = "looked into the provider's dashboard"

// resolves is an operator who says what became of an effect, twice if it is over HTTP, as
// if the first answer had been lost.
func (s *site) resolves(id, verdict string, attempt int64, overHTTP bool) {
	s.t.Helper()
	if !overHTTP {
		run(s.t, "claims", "resolve", "guard", id, "--"+strings.ReplaceAll(verdict, " ", "-"), "--note", note, "--database-url", s.url)
		return
	}
	for guard := range 2 {
		r := s.ends(guard, "resolve", id, "", object{"verdict": verdict, "note": note, "attempt": attempt})
		wantReply(s.t, r, 200, "resolved")
	}
}

// settles makes the effect and settles.
func (s *site) settles(guard int, id, token string, result object) {
	s.t.Helper()
	if status := s.orders(id); status != http.StatusOK {
		s.t.Errorf("the broker answers %d", status)
	}
	if result == nil {
		result = object{}
	}
	wantReply(s.t, s.ends(guard, "settle", id, token, object{"result": result}), 200, "committed")
}

// wantStale wants /sweep to count so many claims in doubt, and to free none.
func (s *site) wantStale(want int) {
	s.t.Helper()
	for _, guard := range s.guards {
		r, err := s.audits.at(guard.url).do(within(s.t), 0, http.MethodPost, "/sweep", "", nil)
		must(s.t, err)
		var swept struct {
			Swept        int  `json:"swept"`
			StalePending int  `json:"stale_pending"`
			Requires     bool `json:"requires_reconciliation"`
		}
		must(s.t, json.Unmarshal(r.raw, &swept))
		if swept.Swept != 0 || swept.StalePending != want || swept.Requires != (want > 0) {
			s.t.Errorf("/sweep answers %s, want %d in doubt", r, want)
		}
	}
}

// wantNote wants an event of a kind that says why.
func (s *site) wantNote(id, kind, words string) {
	s.t.Helper()
	if !slices.ContainsFunc(s.list("/events?request_id="+queryEscape(id)), func(e listed) bool {
		return e.Kind == kind && e.Note != nil && strings.Contains(*e.Note, words)
	}) {
		s.t.Errorf("no event %q of %s says %q:\n%s", kind, id, words, s.history(id))
	}
}

// An agent pays the winner of a contest, and its caller no longer waits. A second agent on
// another machine tries again: there is one payment, and it is told the first's result. If
// the first has died, the payout's own ledger decides.
func TestContestSettlement(t *testing.T) {
	t.Parallel()
	for _, tenants := range []bool{false, true} {
		t.Run(fmt.Sprint("tenants ", tenants), func(t *testing.T) {
			t.Parallel()
			if !tenants {
				contest(t, newSite(t), "", "")
				return
			}
			file := filepath.Join(t.TempDir(), "tenants.json")
			acme := strings.TrimSpace(run(t, "guard", "tenants", "add", "acme", "--tenants", file))
			globex := strings.TrimSpace(run(t, "guard", "tenants", "add", "globex", "--tenants", file))
			s := newSite(t, "--tenants", file)
			wantProblem(t, s.claims(0, "contest-1", nil), 403, "api_key")
			for _, key := range []string{"", strings.ToUpper(acme)} {
				r, err := s.caller.with("X-SafeAgent-Api-Key", key).claim(within(t), "contest-1", nil)
				must(t, err)
				wantProblem(t, r, 403, "api_key")
			}
			contest(t, s, "acme", acme)
			s.strangers(acme, globex, file)
		})
	}
}

// contest is the sequence, at two guards. tenant and key are of whose contest it is.
func contest(t *testing.T, s *site, tenant, key string) {
	t.Helper()
	if key != "" {
		s.audits = s.audits.with("X-SafeAgent-Api-Key", key)
	}
	const paid, died, unpaid = "contest-1:payout", "contest-2:payout", "contest-3:payout"
	s.broker.faults(paid, lostReply)
	first := s.proceeds(0, paid, object{"agent_id": "agent-1", "replay": true})
	if _, err := order(s.caller.http, s.broker.url, paid); err == nil || refusedConnection(err) {
		t.Fatalf("the reply of the payout was not lost: %v", err)
	}
	second := s.claims(1, paid, object{"agent_id": "agent-2", "replay": true})
	if wantReply(t, second, 200, "PENDING"); second.AgentID == nil || *second.AgentID != "agent-1" {
		t.Errorf("the second is answered %s", second)
	}
	if found, err := known(s.caller.http, s.broker.url, paid); !found || err != nil {
		t.Fatalf("the payout is known: %t, %v", found, err)
	}
	wantReply(t, s.ends(0, "settle", paid, first.Token, object{"result": object{"payout": "po_1"}}), 200, "committed")
	wantTold(t, s.claims(1, paid, object{"agent_id": "agent-2", "replay": true}), `{"payout":"po_1"}`)
	s.wantPlaced(paid, 1)

	s.dies(role{ID: died, APIKey: key})
	s.dies(role{ID: unpaid, APIKey: key, Before: true})
	for _, id := range []string{died, unpaid} {
		s.asksTheLedger(id, tenant)
	}
	wantTold(t, s.claims(1, died, object{"agent_id": "agent-2", "replay": true}), `{"payout":"po_2"}`)
	third := s.proceeds(1, unpaid, object{"agent_id": "agent-2"})
	s.settles(0, unpaid, third.Token, object{"payout": "po_3"})
	for _, id := range []string{paid, died, unpaid} {
		s.wantPlaced(id, 1)
	}
	s.audit()
}

// asksTheLedger has a claim come to be in doubt, and resolves it by the payout's own
// ledger.
func (s *site) asksTheLedger(id, tenant string) {
	s.t.Helper()
	s.awaitDoubt(id)
	r := s.claims(1, id, object{"agent_id": "agent-2", "replay": true})
	if wantReply(s.t, r, 200, "PENDING"); !r.InDoubt {
		s.t.Errorf("it is in doubt, and answered %s", r)
	}
	found, err := known(s.caller.http, s.broker.url, id)
	must(s.t, err)
	resolution := object{"verdict": "not happened", "note": "not in the payout's ledger"}
	if found {
		resolution = object{"verdict": "happened", "note": "in the payout's ledger", "result": object{"payout": "po_2"}}
	}
	if tenant != "" {
		resolution["tenant"] = tenant
	}
	wantReply(s.t, s.ends(1, "resolve", id, "", resolution), 200, "resolved")
}

// wantTold wants a claim to be skipped with the result of the one before.
func wantTold(t testing.TB, r reply, result string) {
	t.Helper()
	if wantReply(t, r, 200, "SKIP"); string(r.Existing) != result {
		t.Errorf("got %s, want to be told %s", r, result)
	}
}

// strangers wants a tenant to have nothing of another's, and a key to work at both guards
// once they have seen the file.
func (s *site) strangers(acme, globex, file string) {
	s.t.Helper()
	own, other := s.caller.with("X-SafeAgent-Api-Key", acme), s.caller.with("X-SafeAgent-Api-Key", globex)
	ctx := within(s.t)
	r, err := other.claim(ctx, "contest-1:payout", object{"replay": true})
	must(s.t, err)
	wantReply(s.t, r, 200, "PROCEED")
	theft, err := own.end(ctx, "settle", "contest-1:payout", r.Token, object{"result": object{}})
	must(s.t, err)
	wantProblem(s.t, theft, 403, "settlement_token")
	for name, c := range map[string]*caller{"acme": own, "globex": other} {
		for _, path := range []string{"/audit?", "/events?"} {
			items, err := c.list(ctx, path)
			must(s.t, err)
			for _, item := range items {
				if item.Tenant == nil || *item.Tenant != name {
					s.t.Errorf("%s reads %+v", name, item)
				}
			}
			if len(items) == 0 {
				s.t.Errorf("%s reads nothing at %s", name, path)
			}
		}
		foreign, err := c.do(ctx, 0, http.MethodGet, "/audit?tenant="+map[string]string{"acme": "globex", "globex": "acme"}[name], "", nil)
		must(s.t, err)
		wantProblem(s.t, foreign, 403, "audit_token")
	}
	run(s.t, "guard", "tenants", "revoke", "globex", "--tenants", file)
	for _, guard := range s.guards {
		eventually(s.t, "the key is revoked at "+guard.name, func() bool {
			r, err := other.at(guard.url).claim(ctx, "contest-9", nil)
			must(s.t, err)
			return r.code == http.StatusForbidden
		}, func() string { text, err := os.ReadFile(file); return fmt.Sprint(string(text), err) })
	}
}

// The receiver of webhooks that many have copied: it claims by agent, action and scope,
// goes on unless it is told SKIP, and never settles. Each event is delivered three times,
// and provisions once; also when the lease of its claim is over.
func TestWebhookSnippet(t *testing.T) {
	t.Parallel()
	for _, flags := range [][]string{nil, {"--legacy"}} {
		t.Run(fmt.Sprint(flags), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, append(flags, "--lease", "200ms")...)
			const event = "evt_1"
			for nth := range 3 {
				s.deliver(nth%2, event)
			}
			s.wantPlaced(event, 1)
			var deliveries sync.WaitGroup
			for nth := range 3 * 20 {
				deliveries.Go(func() { s.deliver(nth%2, fmt.Sprint("evt_race_", nth/3)) })
			}
			deliveries.Wait()
			for nth := range 20 {
				s.wantPlaced(fmt.Sprint("evt_race_", nth), 1)
			}
			s.awaitDoubt("webhook:provision:" + event)
			for nth := range 3 {
				s.deliver(nth%2, event)
			}
			s.wantPlaced(event, 1)
			s.audit()
		})
	}
}

// deliver is the snippet.
func (s *site) deliver(guard int, event string) {
	body := encode(object{"agent_id": "webhook", "action_type": "provision", "scope": event})
	c := s.caller.at(s.guards[guard].url)
	answer, err := c.do(context.Background(), 0, http.MethodPost, "/claim", "", body)
	if err != nil {
		s.t.Error(err)
		return
	}
	if answer.Status == "SKIP" {
		return
	}
	if status, err := order(c.http, s.broker.url, event); err != nil || status != http.StatusOK { // provision
		s.t.Errorf("the broker answers %d: %v", status, err)
	}
}
