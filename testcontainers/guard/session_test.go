package guard_test

import (
	"fmt"
	"math/big"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/oncemill/oncemill/guard"
)

// An intended order is one that two bots want to place.
type intended struct{ id, action, amount string }

func may21() []intended {
	return []intended{
		{"order:TQQQ:buy:6:2026-05-21T09:42:00-04:00", "buy", "452"},
		{"order:TQQQ:add:6:2026-05-21T09:47:00-04:00", "add", "452"},
		{"order:TQQQ:sell:12:2026-05-21T09:49:00-04:00", "sell", "902"},
		{"order:TQQQ:entry:6:2026-05-21T10:00:00-04:00", "entry", "454"},
		{"order:TQQQ:sell:18:2026-05-21T10:14:00-04:00", "sell", "1350"},
		{"order:SQQQ:add:1:2026-05-21T11:06:00-04:00", "add", "43"},
	}
}

// bot claims an order at a guard, as the bot of that number.
func (s *site) bot(number int, o intended) reply {
	s.t.Helper()
	return s.claims(number, o.id, object{"action": o.action, "agent_id": fmt.Sprint("bot-", number), "amount": o.amount, "currency": "USD"})
}

// place is what a bot does that is told to go on.
func (s *site) place(number int, o intended, token string) {
	s.t.Helper()
	if status := s.orders(o.id); status != http.StatusOK {
		s.t.Errorf("%s: the broker answers %d", o.id, status)
	}
	wantReply(s.t, s.ends(number, "settle", o.id, token, object{"result": object{"order": o.id}}), 200, "committed")
}

// Six orders of one day, each claimed by two bots at guards of their own: six calls reach
// the broker, six are blocked, and the report says when, and how much they were.
func TestTheMay21Session(t *testing.T) {
	t.Parallel()
	t.Run("the second comes when the first has settled", func(t *testing.T) {
		t.Parallel()
		s := newSite(t)
		for i, o := range may21() {
			first := s.bot(i%2, o)
			wantReply(t, first, 200, "PROCEED")
			s.place(i%2, o, first.Token)
			wantReply(t, s.bot(1-i%2, o), 200, "SKIP")
		}
		s.wantMay21()
	})
	t.Run("the second comes when the first has claimed", func(t *testing.T) {
		t.Parallel()
		s := newSite(t)
		for i, o := range may21() {
			first := s.bot(i%2, o)
			wantReply(t, first, 200, "PROCEED")
			wantReply(t, s.bot(1-i%2, o), 200, "PENDING")
			s.place(i%2, o, first.Token)
		}
		s.wantMay21()
	})
	t.Run("they race", func(t *testing.T) {
		t.Parallel()
		s := newSite(t)
		for _, o := range may21() {
			var bots sync.WaitGroup
			for number := range 2 {
				bots.Go(func() {
					switch r := s.bot(number, o); r.Status {
					case "PROCEED":
						s.place(number, o, r.Token)
					case "PENDING", "SKIP":
					default:
						t.Errorf("%s: %s", o.id, r)
					}
				})
			}
			bots.Wait()
		}
		s.wantMay21()
	})
}

// wantMay21 wants the ledger, the events and the report of the day.
func (s *site) wantMay21() {
	s.t.Helper()
	blocked := s.list("/events?kind=blocked")
	if len(blocked) != 6 {
		s.t.Errorf("%d are blocked, want 6", len(blocked))
	}
	first, last := float64(time.Now().Unix()), 0.0
	for _, o := range may21() {
		s.wantPlaced(o.id, 1)
		claims := s.list("/events?kind=claimed&request_id=" + queryEscape(o.id))
		skips := s.list("/events?kind=blocked&request_id=" + queryEscape(o.id))
		if len(claims) != 1 || len(skips) != 1 {
			s.t.Fatalf("%s: %d claims and %d skips, want one each", o.id, len(claims), len(skips))
		}
		if skips[0].At <= claims[0].At || skips[0].Action != o.action || *skips[0].Amount != o.amount || *skips[0].AgentID == *claims[0].AgentID {
			s.t.Errorf("%s: claimed %+v, skipped %+v", o.id, claims[0], skips[0])
		}
		first, last = min(first, skips[0].At), max(last, skips[0].At)
	}
	all, amount := s.summary("/summary?")
	if all != 6 || amount != "3653.00" {
		s.t.Errorf("%d blocked of %s, want 6 of 3653.00", all, amount)
	}
	if all, amount = s.summary(fmt.Sprintf("/summary?from_ts=%f&to_ts=%f", first, last)); all != 6 || amount != "3653.00" {
		s.t.Errorf("in that time %d blocked of %s, want 6 of 3653.00", all, amount)
	}
	if all, _ = s.summary(fmt.Sprintf("/summary?from_ts=%f", last+1)); all != 0 {
		s.t.Errorf("%d blocked after the session", all)
	}
	s.audit()
}

// summary is how many claims were blocked, and the sum of their amounts, in USD.
func (s *site) summary(path string) (blocked int, amount string) {
	s.t.Helper()
	var answer struct {
		Items []struct {
			Currency *string `json:"currency"`
			Blocked  int     `json:"blocked"`
			Amount   string  `json:"amount"`
		} `json:"items"`
		Blocked int `json:"blocked"`
	}
	must(s.t, s.audits.get(within(s.t), path, &answer))
	sum, n := new(big.Rat), 0
	for _, item := range answer.Items {
		part, ok := new(big.Rat).SetString(item.Amount)
		if !ok || item.Currency == nil || *item.Currency != "USD" {
			s.t.Fatalf("%s: %+v", path, answer)
		}
		sum.Add(sum, part)
		n += item.Blocked
	}
	if n != answer.Blocked {
		s.t.Errorf("%s: the items are %d together, and blocked is %d", path, n, answer.Blocked)
	}
	return n, sum.FloatString(2)
}

const exit, entry = "order:SQQQ:exit:2026-05-21T11:33:00-04:00", "order:SQQQ:entry:2026-05-21T11:35:00-04:00"

// The exit is sent twice under one id, after a 503 that turned out to have placed nothing;
// what the broker has refused for good is not sent a third time; and what comes next is
// not held up by it.
func TestTheExitSideOverHTTP(t *testing.T) {
	t.Parallel()
	t.Run("the 503 has placed nothing", func(t *testing.T) {
		t.Parallel()
		s := newSite(t)
		s.broker.faults(exit, unavailable, rejected)
		first := s.sendsExit(0, http.StatusServiceUnavailable, false)
		wantReply(t, s.ends(0, "release", exit, first.Token, object{"reason": "the broker has no such order"}), 200, "released")
		second := s.sendsExit(1, http.StatusUnprocessableEntity, false)
		if second.fence() <= first.fence() {
			t.Errorf("the second attempt has the token %d, the first had %d", second.fence(), first.fence())
		}
		wantProblem(t, s.ends(0, "settle", exit, first.Token, object{"result": object{}}), 409, "fenced")
		wantReply(t, s.ends(1, "fail", exit, second.Token, object{"reason": "422 order is not allowed"}), 200, "failed")
		for number := range 2 {
			third := s.claims(number, exit, nil)
			if wantReply(t, third, 200, "SKIP"); !third.Failed || third.Reason != "422 order is not allowed" {
				t.Errorf("the third attempt is answered %s", third)
			}
		}
		if n := s.broker.asked(exit); n != 2 {
			t.Errorf("%d calls have reached the broker, want 2", n)
		}
		s.wantKinds(exit, "claimed", "released", "claimed", "refused", "failed", "blocked", "blocked")
		s.placesNext(entry)
	})
	t.Run("the 503 has placed it", func(t *testing.T) {
		t.Parallel()
		s := newSite(t)
		s.broker.faults(exit, placedUnknown)
		first := s.sendsExit(0, http.StatusServiceUnavailable, true)
		wantReply(t, s.ends(0, "settle", exit, first.Token, object{"result": object{"order": exit}}), 200, "committed")
		wantReply(t, s.claims(1, exit, nil), 200, "SKIP")
		if n := s.broker.asked(exit); n != 1 {
			t.Errorf("%d calls have reached the broker, want 1", n)
		}
		s.wantKinds(exit, "claimed", "settled", "blocked")
		s.placesNext(entry)
	})
}

// sendsExit is an attempt: the exit is claimed and sent, the broker answers so, and is
// asked by the id whether it has the order.
func (s *site) sendsExit(guard, answer int, has bool) reply {
	s.t.Helper()
	r := s.proceeds(guard, exit, nil)
	if status := s.orders(exit); status != answer {
		s.t.Fatalf("the broker answers %d, want %d", status, answer)
	}
	if found, err := known(s.caller.http, s.broker.url, exit); found != has || err != nil {
		s.t.Fatalf("the broker knows the order: %t, %v", found, err)
	}
	return r
}

// placesNext wants what is decided on a new turn to be placed.
func (s *site) placesNext(id string) {
	s.t.Helper()
	next := s.proceeds(1, id, nil)
	if status := s.orders(id); status != http.StatusOK {
		s.t.Errorf("the broker answers %d", status)
	}
	wantReply(s.t, s.ends(0, "settle", id, next.Token, object{"result": object{}}), 200, "committed")
	s.wantPlaced(id, 1)
	s.audit()
}

// A turn that is routed anew gets another decision id, and the same request id.
func TestRoutingSplit(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	intent := guard.Intent{
		SessionID: "sess-abc", TurnID: "3", StartTimeMS: 1716780000000, Task: "Summarize the quarterly report",
		CapabilityID: "general_content", Provider: "chatgpt", Constraints: []byte(`{"max_cost":1.0}`),
	}
	route := func(number int, i guard.Intent, decision string) (id string, r reply) {
		t.Helper()
		id, err := i.RequestID()
		must(t, err)
		return id, s.claims(number, id, object{"action": "route", "decision_id": decision})
	}
	id, first := route(0, intent, "decision-1")
	if id != "000299a9-3e53-cbfc-b9f6-dfdad2b2c42f" {
		t.Errorf("the request id is %s", id)
	}
	wantReply(t, first, 200, "PROCEED")
	again := intent
	again.Task = "  Summarize the\tquarterly\n report "
	_, meanwhile := route(1, again, "decision-2")
	wantReply(t, meanwhile, 200, "PENDING")
	if status := s.orders(id); status != http.StatusOK {
		t.Errorf("the provider answers %d", status)
	}
	wantReply(t, s.ends(0, "settle", id, first.Token, object{"result": object{"decision_id": "decision-1"}}), 200, "committed")
	same, after := route(1, again, "decision-3")
	if wantReply(t, after, 200, "SKIP"); same != id {
		t.Errorf("the retry has the request id %s", same)
	}
	s.wantPlaced(id, 1)
	s.wantKinds(id, "claimed", "blocked", "settled", "blocked")

	next := intent
	next.TurnID = "4"
	other, r := route(1, next, "decision-4")
	if wantReply(t, r, 200, "PROCEED"); other == id {
		t.Error("the next turn has the same request id")
	}
	s.audit()
}
