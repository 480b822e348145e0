package guard_test

import (
	"fmt"
	"sync"
	"testing"
)

// A morning of two bots that both see each signal: what one has claimed, the other is not
// to order, however they reach the guard.
func TestTwoBotsOrderEachOrderOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	bots := map[string]*site{"bot-1": s, "bot-2": s.another()}
	orders := []struct{ at, side, symbol, quantity, amount string }{
		{"09:42", "buy", "TQQQ", "6", "452"}, {"09:47", "add", "TQQQ", "6", "452"}, {"09:49", "sell", "TQQQ", "12", "902"},
		{"10:00", "entry", "TQQQ", "6", "454"}, {"10:14", "sell", "TQQQ", "18", "1350.00"}, {"11:06", "add", "SQQQ", "1", "43"},
	}
	broker := make(map[string]int)
	var mu sync.Mutex
	for _, o := range orders {
		id := fmt.Sprintf("order:%s:%s:%s:2026-05-21T%s:00-04:00", o.symbol, o.side, o.quantity, o.at)
		var wg sync.WaitGroup
		for bot, g := range bots {
			wg.Go(func() {
				answer := g.post("/claim", mustJSON(t, map[string]string{
					"request_id": id, "action": "order", "agent_id": bot, "amount": o.amount, "currency": "USD",
				}))
				if answer.fields()["status"] != "PROCEED" {
					return
				}
				mu.Lock()
				broker[id]++
				mu.Unlock()
				g.post("/settle/"+id, `{"result":{"order_id":"o-1"}}`, answer.settlement()).is(200, `{"status":"committed","request_id":"`+id+`"}`)
			})
		}
		wg.Wait()
		if broker[id] != 1 {
			t.Errorf("%s reached the broker %d times", id, broker[id])
		}
		s.get("/events?kind=blocked&request_id="+id, asAuditor).lists("amount", o.amount)
	}
	s.get("/summary?action=order", asAuditor).is(200, `{"items":[{"tenant":null,"action":"order","currency":"USD","blocked":6,"effects":6,"amount":"3653.00"}],"blocked":6,"effects":6}`)
	s.get("/audit?status=COMMITTED", asAuditor).is(200, `{"items":["*","*","*","*","*","*"],"total":6,"limit":100,"offset":0,"next_cursor":null}`)
}

// An exit that the broker refuses for good leaves no phantom position: its id is told so,
// and the next turn's has nothing to do with it.
func TestAnExitThatIsRefusedForGoodBlocksNoEntry(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const exit = `{"request_id":"turn-1:exit:SQQQ","action":"order"}`
	first := s.post("/claim", exit).settlement() // the broker answers 503, and when it is asked it has no such order
	s.post("/release/turn-1:exit:SQQQ", `{"reason":"the broker has no order with this id"}`, first).is(200, `{"status":"released","request_id":"turn-1:exit:SQQQ"}`)
	second := s.post("/claim", exit).settlement() // the broker answers 422
	s.post("/fail/turn-1:exit:SQQQ", `{"reason":"422: no position"}`, second).is(200, `{"status":"failed","request_id":"turn-1:exit:SQQQ"}`)
	s.post("/claim", exit).is(200, `{"status":"SKIP","request_id":"turn-1:exit:SQQQ","agent_id":null,"failed":true,"reason":"422: no position"}`)
	s.post("/claim", `{"request_id":"turn-2:entry:SQQQ","action":"order"}`).settlement()
}

// A webhook's handler that never settles provisions once, whatever becomes of the lease.
func TestAWebhookThatNeverSettlesIsHandledOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	provisioned := 0
	deliver := func() {
		if s.post("/claim", `{"agent_id":"stripe","action_type":"provision","scope":"evt_1"}`).fields()["status"] == "SKIP" {
			return
		}
		provisioned++
	}
	deliver()
	deliver()
	s.expire("stripe:provision:evt_1")
	deliver()
	if provisioned != 1 {
		t.Errorf("provisioned %d times", provisioned)
	}
}

// A payout whose agent died is in doubt, and its own ledger decides.
func TestAPayoutIsMadeOnceWhoeverDies(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const pay = `{"request_id":"contest-9:payout","action":"payout","amount":"500","currency":"USDC","replay":true}`
	s.post("/claim", pay).settlement() // it dies after the payment, and before it settles
	s.expire("contest-9:payout")
	s.post("/claim", pay).is(200, `{"status":"PENDING","request_id":"contest-9:payout","agent_id":null,"in_doubt":true,"reason":"its lease was over"}`)
	s.post("/resolve/contest-9:payout", `{"verdict":"happened","note":"tx 0xab is in the ledger","result":{"tx":"0xab"}}`, asAuditor).
		is(200, `{"status":"resolved","request_id":"contest-9:payout","verdict":"happened"}`)
	s.post("/claim", pay, asAuditor).is(200, `{"status":"SKIP","request_id":"contest-9:payout","agent_id":null,"existing":{"tx":"0xab"}}`)
}
