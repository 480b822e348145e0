package effects_test

import (
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	_ "github.com/lib/pq"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/testcontainers"
)

// Six orders of one day, each of which two bots want to place at the same moment: six
// calls reach the broker, six are blocked, and the report says how much they were.
func TestTheMay21Session(t *testing.T) {
	t.Parallel()
	const rounds = 20
	orders := []struct{ id, amount string }{
		{"order:TQQQ:buy:6:2026-05-21T09:42:00-04:00", "452"},
		{"order:TQQQ:add:6:2026-05-21T09:47:00-04:00", "452"},
		{"order:TQQQ:sell:12:2026-05-21T09:49:00-04:00", "902"},
		{"order:TQQQ:entry:6:2026-05-21T10:00:00-04:00", "454"},
		{"order:TQQQ:sell:18:2026-05-21T10:14:00-04:00", "1350"},
		{"order:SQQQ:add:1:2026-05-21T11:06:00-04:00", "43"},
	}
	database := testcontainers.Postgres(t)
	var bots []*oncemill.Inbox // each with a pool of its own, as in a process of its own
	for range 2 {
		db, err := sql.Open("postgres", database.URL)
		must(t, err)
		t.Cleanup(func() { db.Close() })
		bots = append(bots, &oncemill.Inbox{DB: db})
	}
	for round := range rounds {
		day := fmt.Sprintf("round %d", round)
		var calls atomic.Int32
		var working sync.WaitGroup
		for _, bot := range bots {
			working.Go(func() {
				for _, i := range rand.Perm(len(orders)) {
					place(t, bot.Consumer(day), orders[i].id, orders[i].amount, &calls)
				}
			})
		}
		working.Wait()
		blocked, err := bots[0].Blocked(within(t), day, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
		must(t, err)
		if calls.Load() != 6 || len(blocked) != 1 || blocked[0].Claims != 6 || blocked[0].Amount != "3653" || blocked[0].Currency != "USD" {
			t.Errorf("%s: %d calls reached the broker, blocked %+v; want 6 and 6 of 3653 USD", day, calls.Load(), blocked)
		}
	}
}

// place is what a bot does: claim, call the broker, settle.
func place(t *testing.T, desk *oncemill.Consumer, id, amount string, calls *atomic.Int32) {
	claim, err := desk.Claim(within(t), id, oncemill.ClaimOptions{Amount: amount, Currency: "USD"})
	switch {
	case errors.Is(err, oncemill.ErrSettled), errors.Is(err, oncemill.ErrInFlight):
		return
	case err != nil:
		t.Errorf("%s: %v", id, err)
		return
	}
	calls.Add(1)
	if err := claim.Settle(within(t), nil, nil); err != nil {
		t.Errorf("%s: %v", id, err)
	}
}
