package guard_test

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// A guard is told to stop while callers claim at it, without nonces, and without asking
// again. Those who are answered PROCEED have a claim, those who are not answered have
// none, and it ends with 0.
func TestAGuardIsStoppedGracefully(t *testing.T) {
	t.Parallel()
	for round := range 5 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			victim := s.guards[0]
			var mu sync.Mutex
			told := make(map[int64]string) // fencing tokens, and of which id
			answered := make(chan struct{}, 10000)
			var callers sync.WaitGroup
			for i := range 16 {
				own := s.newCaller(limit)
				callers.Go(func() {
					own.claimsUntilItStops(t, victim, i, func(id string, r reply) {
						mu.Lock()
						defer mu.Unlock()
						if r.Token != "" {
							told[r.fence()] = id
						}
						answered <- struct{}{}
					})
				})
			}
			for range 100 + 37*round {
				<-answered
			}
			victim.terminate()()
			callers.Wait()
			for token, id := range told {
				if n := s.count(`SELECT count(*) FROM oncemill.claims WHERE key = $1 AND token = $2`, id, token); n != 1 {
					t.Errorf("%s: answered PROCEED with the token %d, and there is no such claim", id, token)
				}
			}
			if n := s.count(`SELECT count(*) FROM oncemill.claims`); n != len(told) {
				t.Errorf("%d claims were made, callers were told of %d", n, len(told))
			}
			s.audit()
		})
	}
}

// claimsUntilItStops claims one id after the other at a guard, until it does not answer.
func (c *caller) claimsUntilItStops(t *testing.T, victim *daemon, number int, told func(id string, r reply)) {
	for n := 0; ; n++ {
		id := fmt.Sprintf("order-%d-%d", number, n)
		r, err := c.once(t.Context(), victim.url, http.MethodPost, "/claim", "", encode(object{"request_id": id, "action": "order"}))
		if err != nil {
			return
		}
		if r.Status != "PROCEED" && r.code != http.StatusServiceUnavailable {
			t.Errorf("%s: %s", id, r)
		}
		told(id, r)
	}
}

// A request that is under way when the guard is told to stop is answered.
func TestAStoppingGuardAnswersWhatItHas(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	victim := s.guards[0]
	tx, err := s.db.Begin()
	must(t, err)
	_, err = tx.Exec(`INSERT INTO oncemill.claims (consumer, key) VALUES ('guard', 'order-1')`)
	must(t, err)
	answer := make(chan reply, 1)
	go func() {
		r, err := s.caller.once(t.Context(), victim.url, http.MethodPost, "/claim", "", encode(object{"request_id": "order-1", "action": "order"}))
		if err != nil {
			t.Error(err)
		}
		answer <- r
	}()
	eventually(t, "the claim waits in Postgres", func() bool {
		return s.count(`SELECT count(*) FROM pg_locks AS l JOIN pg_database AS d ON true
			JOIN pg_stat_activity AS a ON a.pid = l.pid AND a.datname = d.datname
			WHERE d.datname = current_database() AND NOT granted`) > 0
	})
	await := victim.terminate()
	eventually(t, "it takes no more connections", func() bool {
		conn, err := net.Dial("tcp", strings.TrimPrefix(victim.url, "http://"))
		if err != nil {
			return true
		}
		conn.Close()
		return false
	})
	must(t, tx.Rollback())
	r := <-answer
	wantReply(t, r, 200, "PROCEED")
	await()
	wantReply(t, s.ends(1, "settle", "order-1", r.Token, object{"result": object{}}), 200, "committed")
	s.audit()
}
