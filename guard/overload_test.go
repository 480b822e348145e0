package guard_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oncemill/oncemill/guard"
)

// A crowd is callers of a guard whose Postgres is frozen.
type crowd struct {
	*site
	gate     *gate
	callers  int
	began    atomic.Int32 // requests
	under    atomic.Int32 // way
	answered sync.WaitGroup
}

func newCrowd(t *testing.T, callers, claimBatch int) *crowd {
	t.Helper()
	s := newSite(t)
	c := &crowd{gate: newGate(t, s.url), callers: callers}
	c.site = s.at(c.gate.url, func(h *guard.Handler) {
		h.Timeout, h.Inbox.DrainTimeout, h.Inbox.LockWait = time.Hour, time.Hour, time.Minute // nothing here ends by time
		h.Inbox.ClaimBatch = claimBatch
	})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.began.Add(1)
		c.under.Add(1)
		defer c.under.Add(-1)
		c.handler.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	c.server, c.client = server, server.Client()
	t.Cleanup(c.client.CloseIdleConnections)
	return c
}

// claims has a caller claim an id of its own, with the same nonce each time, and returns
// the status of the answer, 0 if it has given up before.
func (c *crowd) claims(ctx context.Context, id string) (status int, body string) {
	r := c.request(http.MethodPost, "/claim", fmt.Sprintf(`{"request_id":%q,"action":"x","nonce":"nonce-of-%032s"}`, id, id))
	response, err := c.client.Do(r.WithContext(ctx))
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(response.Body)
	return response.StatusCode, string(text)
}

// wantProceed has a caller claim, and wants it to be told to go on.
func (c *crowd) wantProceed(id string) {
	c.answered.Go(func() {
		if status, body := c.claims(within(c.t), id); status != 200 || jsonOf(c.t, body).(map[string]any)["status"] != "PROCEED" {
			c.t.Errorf("%s: %d %s", id, status, body)
		}
	})
}

// giveUp has all callers claim, and leave when the guard has their requests.
func (c *crowd) giveUp() {
	c.t.Helper()
	before := c.began.Load()
	ctx, leave := context.WithCancel(within(c.t))
	var gone sync.WaitGroup
	for i := range c.callers {
		gone.Go(func() {
			if status, body := c.claims(ctx, fmt.Sprint("caller-", i)); status != 0 {
				c.t.Errorf("caller-%d got %d %s of a frozen Postgres", i, status, body)
			}
		})
	}
	c.until("the guard has all requests", func() bool { return c.began.Load() == before+int32(c.callers) })
	leave()
	gone.Wait()
}

// Postgres is frozen, and more callers than it could serve come, give up and come again. The
// guard does nothing for those who have gone: as soon as Postgres is thawed, each of them who
// is still interested is served at the first request, and for the others nothing is claimed.
//
// It runs before those that run in parallel: some of them have guards that give up soon.
func TestAGuardRecoversFromCallersWhoGaveUp(t *testing.T) {
	for _, claimBatch := range []int{0, 64} {
		t.Run(fmt.Sprint("ClaimBatch ", claimBatch), func(t *testing.T) {
			c := newCrowd(t, 200, claimBatch)
			c.claim("warm")
			c.post("/claim", `{"request_id":"warm","action":"charge"}`).is(200, `{"status":"PENDING","request_id":"warm","agent_id":null}`)
			c.gate.frozen.Lock()
			for i := range int32(2) { // who have been sent already, in two statements
				c.wantProceed(fmt.Sprint("patient-", i))
				c.until("Postgres does not answer", func() bool { return c.gate.stuck.Load() == i+1 })
			}
			for range 3 {
				c.giveUp()
				c.until("nobody waits for whom nobody waits", func() bool { return c.under.Load() == 2 })
			}
			c.gate.frozen.Unlock()
			for i := 0; i < c.callers; i += 2 {
				c.wantProceed(fmt.Sprint("caller-", i))
			}
			c.answered.Wait()
			if n := c.count(`SELECT count(*) FROM oncemill.claims`); n != 1+2+c.callers/2 {
				t.Errorf("%d claims, want one of each caller who has waited for it", n)
			}
			if n := c.count(`SELECT count(*) FROM oncemill.events WHERE kind <> 'blocked'`); n != 1+2+c.callers/2 {
				t.Errorf("%d events, want one of each claim", n)
			}
		})
	}
}
