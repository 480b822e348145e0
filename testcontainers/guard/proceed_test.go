package guard_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
)

// Sixty-four callers race for each of two hundred ids at two guards. One of them proceeds,
// all others are told not to, and every refusal is in the events.
func TestOneProceedEach(t *testing.T) {
	t.Parallel()
	const callers, ids = 64, 200
	s := newSite(t)
	var mu sync.Mutex
	proceeded, refused, tokens := make(map[string]int), make(map[string]int), make(map[string]bool)
	told := func(id string, r reply) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case r.Status == "PROCEED" && !tokens[r.Token]:
			proceeded[id]++
			tokens[r.Token] = true
		case r.Status == "PENDING" || r.Status == "SKIP":
			refused[id]++
		default:
			t.Errorf("%s: %s", id, r)
		}
	}
	var all sync.WaitGroup
	for i := range callers {
		own := s.newCaller(limit)
		blocks := rand.Perm(ids / 10) // all meet at some ids, and find others settled
		all.Go(func() {
			for _, block := range blocks {
				for n := range 10 {
					s.races(own, i, idOf(10*block+n), told)
				}
			}
		})
	}
	all.Wait()
	for n := range ids {
		id := idOf(n)
		if proceeded[id] != 1 || refused[id] != callers-1 {
			t.Errorf("%s: %d proceeded and %d were refused", id, proceeded[id], refused[id])
		}
		s.wantPlaced(id, 1)
	}
	if n := s.count(`SELECT count(*) FROM oncemill.events WHERE kind = 'blocked'`); n != ids*(callers-1) {
		t.Errorf("%d refusals are in the events, want %d", n, ids*(callers-1))
	}
	s.audit()
}

// races claims an id, and makes the effect and settles if it may.
func (s *site) races(own *caller, number int, id string, told func(id string, r reply)) {
	body := encode(object{"request_id": id, "action": "order", "agent_id": fmt.Sprint("caller-", number)})
	r, err := own.do(s.t.Context(), number, http.MethodPost, "/claim", "", body)
	if err != nil {
		s.t.Errorf("%s: %v", id, err)
		return
	}
	if told(id, r); r.Token == "" {
		return
	}
	s.broker.execute(id)
	settled, err := own.end(s.t.Context(), "settle", id, r.Token, object{"result": object{}})
	if err != nil || settled.Status != "committed" {
		s.t.Errorf("%s: %s, %v", id, settled, err)
	}
}
