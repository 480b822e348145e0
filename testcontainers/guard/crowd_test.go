package guard_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

// A crowd is callers that claim ids, each with a nonce, at whichever guard answers, make
// the effects, and settle. It keeps account of what they were told, and wants nobody to be
// told to go on while another may.
type crowd struct {
	s     *site
	tasks chan int // numbers of ids
	all   sync.WaitGroup

	mu       sync.Mutex
	holders  map[string]int    // how many may go on, or have
	tokens   map[int64]string  // the fencing tokens that callers have seen, and of which id
	settled  map[string]bool   // by whom it was answered 200
	dead     map[string]bool   // whose caller has died
	released map[string]bool   // once
	statuses map[string]int    // answers to claims
	answered int               // claims and their ends
	more     chan struct{}     // closed with the next answer
	wrong    map[string]string // what has gone wrong with an id
}

// What callers do, by the numbers of their ids.
func diesBefore(n int) bool   { return n%10 == 7 }
func diesAfter(n int) bool    { return n%10 == 3 }
func releasesOnce(n int) bool { return n%5 == 1 }
func idOf(n int) string       { return fmt.Sprintf("order-%05d", n) }
func (c *crowd) do(tasks []int) {
	for _, n := range tasks {
		c.tasks <- n
	}
}

// newCrowd has so many callers wait for tasks. Each id may be given to several.
func newCrowd(s *site, callers int, timeout time.Duration, guards ...string) *crowd {
	c := &crowd{
		s: s, tasks: make(chan int), holders: make(map[string]int), tokens: make(map[int64]string), settled: make(map[string]bool),
		dead: make(map[string]bool), released: make(map[string]bool), statuses: make(map[string]int), more: make(chan struct{}), wrong: make(map[string]string),
	}
	for i := range callers {
		own := newCaller(timeout, guards...)
		c.all.Go(func() {
			defer own.close()
			for n := range c.tasks {
				c.attempt(own, i, n)
			}
		})
	}
	return c
}

// stop waits until the callers have done what they were given.
func (c *crowd) stop() {
	close(c.tasks)
	c.all.Wait()
}

// fails notes what has gone wrong.
func (c *crowd) fails(id, format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrong[id] += fmt.Sprintf(format, args...) + "\n"
}

// hears counts an answer.
func (c *crowd) hears() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answered++
	close(c.more)
	c.more = make(chan struct{})
}

// await waits until there are so many answers.
func (c *crowd) await(n int) {
	c.s.t.Helper()
	ctx := within(c.s.t)
	for {
		c.mu.Lock()
		answered, more := c.answered, c.more
		c.mu.Unlock()
		if answered >= n {
			return
		}
		select {
		case <-more:
		case <-ctx.Done():
			c.s.t.Fatalf("there are %d answers, want %d", answered, n)
		}
	}
}

// heard returns how many answers there are so far.
func (c *crowd) heard() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answered
}

// attempt is what a caller does about an id.
func (c *crowd) attempt(own *caller, first, n int) {
	id := idOf(n)
	for {
		token := c.claim(own, first, id)
		switch {
		case token == "":
			return
		case diesBefore(n):
			c.dies(id)
			return
		case releasesOnce(n) && c.letsGo(id):
			c.end(own, first, "release", id, token, object{"reason": "the broker does not have it"})
			continue
		}
		c.s.broker.execute(id)
		if diesAfter(n) {
			c.dies(id)
			return
		}
		if c.end(own, first, "settle", id, token, object{"result": object{"by": first}}) {
			c.mu.Lock()
			c.settled[id] = true
			c.mu.Unlock()
		}
		return
	}
}

func (c *crowd) dies(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead[id] = true
}

// letsGo tells whether an id is to be released, which it is once. From then on another may
// be told to go on.
func (c *crowd) letsGo(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.released[id] {
		return false
	}
	c.released[id] = true
	c.holders[id]--
	return true
}

// claim returns the settlement token, or "".
func (c *crowd) claim(own *caller, first int, id string) (token string) {
	body := encode(object{"request_id": id, "action": "order", "agent_id": fmt.Sprint("caller-", first), "nonce": nonce()})
	r, err := own.do(context.Background(), first, http.MethodPost, "/claim", "", body)
	if err != nil || r.code != http.StatusOK {
		c.fails(id, "claim: %s, %v", r, err)
		return ""
	}
	defer c.hears()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.statuses[r.Status]++
	if r.Status != "PROCEED" {
		return ""
	}
	if c.holders[id]++; c.holders[id] > 1 {
		c.wrong[id] += "a second caller may go on\n"
	}
	if other, taken := c.tokens[r.fence()]; taken || r.fence() == 0 {
		c.wrong[id] += fmt.Sprintf("the token %q was seen before, for %s\n", r.Token, other)
	}
	c.tokens[r.fence()] = id
	return r.Token
}

// end ends a claim, and tells whether it is answered that this is done.
func (c *crowd) end(own *caller, first int, what, id, token string, body object) bool {
	r, err := own.do(context.Background(), first, http.MethodPost, "/"+what+"/"+url.PathEscape(id), token, encode(body))
	if err != nil || r.code != http.StatusOK {
		c.fails(id, "%s: %s, %v", what, r, err)
		return false
	}
	c.hears()
	return true
}

// balance wants every id to be accounted for, when all callers have ended: by what they
// were told, by the ledger, by the claims and by the events.
func (c *crowd) balance(ids int) {
	s := c.s
	s.t.Helper()
	for _, id := range slices.Sorted(maps.Keys(c.wrong)) {
		s.t.Errorf("%s: %s%s", id, c.wrong[id], s.history(id))
	}
	// Leases of those who have died are over: they are in doubt, and listed.
	s.exec(`UPDATE oncemill.claims SET lease_until = clock_timestamp() - interval '1 millisecond' WHERE settled_at IS NULL`)
	doubted := make(map[string]bool)
	for _, claim := range s.list("/audit?status=IN_DOUBT&limit=1000") {
		doubted[claim.RequestID] = true
	}
	late := c.late()
	for n := range ids {
		id := idOf(n)
		want := 1
		if diesBefore(n) || late[id] {
			want = 0
		}
		lost := c.dead[id] || late[id]
		if placed := s.broker.times(id); placed != want || doubted[id] != lost || c.settled[id] == lost {
			s.t.Errorf("%s: placed %d times, its caller has died %t, has settled %t, it is in doubt %t\n%s",
				id, placed, c.dead[id], c.settled[id], doubted[id], s.history(id))
		}
	}
	if n := s.count(`SELECT count(*) FROM oncemill.claims WHERE outcome = 'settled'`); n != len(c.settled) {
		s.t.Errorf("%d claims are settled, callers were told so of %d", n, len(c.settled))
	}
	s.wantStale(len(c.dead) + len(late))
	s.audit()
}

// late wants every claim that was made to be one that a caller knows of, and the other way
// round, but for what it returns. The statement of a guard that was killed may still be
// under way in Postgres when its caller has its answer from the other guard. If the id is
// released then, that statement claims it once more. Nobody is told, so no effect is made,
// and the claim comes to be in doubt.
func (c *crowd) late() map[string]bool {
	c.s.t.Helper()
	late := make(map[string]bool)
	rows, err := c.s.db.Query(`SELECT token, key FROM oncemill.events WHERE kind = 'claimed'`)
	must(c.s.t, err)
	defer rows.Close()
	made := 0
	for rows.Next() {
		var token int64
		var key string
		must(c.s.t, rows.Scan(&token, &key))
		made++
		if c.tokens[token] == key {
			continue
		}
		if late[key] || !c.released[key] || c.settled[key] {
			c.s.t.Errorf("%s was claimed with the token %d, and nobody was told\n%s", key, token, c.s.history(key))
		}
		late[key] = true
	}
	must(c.s.t, rows.Err())
	if made != len(c.tokens)+len(late) {
		c.s.t.Errorf("%d claims were made, callers were told of %d", made, len(c.tokens))
	}
	if len(late) > 0 {
		c.s.t.Logf("claimed late, and in doubt: %v", slices.Sorted(maps.Keys(late)))
	}
	return late
}
