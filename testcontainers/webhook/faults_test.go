package webhook_test

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/own"
	"github.com/oncemill/oncemill/testcontainers/internal/proxy"
)

// Receivers are killed before the COMMIT of an event, within it, and after it and before
// the reply. Stripe delivers again, and each event is stored once and handled once.
func TestReceiversKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	for _, f := range []fault{dieBeforeCommit, dieWithinCommit, dieBeforeReply} {
		t.Run(string(f), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, testcontainers.Postgres(t))
			const victims = 3
			s.hire = func(nth int) role {
				if nth < victims {
					return role{Fault: f, After: nth}
				}
				return role{}
			}
			s.deliver(12)
			if s.hired != victims+1 {
				t.Errorf("%d receivers were hired, want %d of them dead and one alive", s.hired, victims)
			}
			s.balance()
		})
	}
}

// A receiver dies with the reply of an event that is committed: the next one answers 200
// to the redelivery, and stores nothing.
func TestAReceiverKilledBeforeItsReplyHasStoredTheEvent(t *testing.T) {
	t.Parallel()
	s := newSite(t, testcontainers.Postgres(t))
	s.hire = func(nth int) role {
		if nth == 0 {
			return role{Fault: dieBeforeReply}
		}
		return role{}
	}
	const id = "evt_lost"
	s.sent[id] = true
	if status := s.attempt(id, 0); status != 0 {
		t.Fatalf("answered %d, want no answer", status)
	}
	if n := s.count(`SELECT count(*) FROM oncemill.outbox`); n != 1 {
		t.Fatalf("%d rows, want the one that is committed", n)
	}
	if status := s.attempt(id, 1); status != http.StatusOK {
		t.Errorf("the redelivery was answered %d", status)
	}
	s.balance()
}

// COMMITs of events are lost, or their answers: 503, and the redelivery finds out.
func TestACommitOfAnEventIsLost(t *testing.T) {
	t.Parallel()
	for name, loss := range map[string]proxy.Loss{"request": proxy.TheRequest, "answer": proxy.TheAnswer} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, testcontainers.Postgres(t))
			const most = 4
			var mu sync.Mutex
			seen, lost := 0, 0
			p, address := proxy.Through(t, s.postgres, func() proxy.Watch {
				return func(request []byte) proxy.Loss {
					mu.Lock()
					defer mu.Unlock()
					if lost == most || len(request) < 5 || !bytes.HasPrefix(request[5:], []byte("COMMIT")) {
						return proxy.Nothing
					}
					if seen++; seen%3 != 0 {
						return proxy.Nothing
					}
					lost++
					return loss
				}
			})
			s.postgres = address
			s.deliver(12)
			if p.Losses() != most || s.again != most {
				t.Errorf("%d COMMITs were lost and %d deliveries told to come again, want %d", p.Losses(), s.again, most)
			}
			s.balance()
		})
	}
}

// outages are what happens to a Postgres server, and how it ends.
var outages = map[string]struct {
	begin func(*testcontainers.PostgresServer) error
	end   func(context.Context, *testcontainers.PostgresServer) error
}{
	"killed": {
		(*testcontainers.PostgresServer).Kill,
		func(ctx context.Context, server *testcontainers.PostgresServer) error { return server.Start(ctx) },
	},
	"frozen": {
		(*testcontainers.PostgresServer).Freeze,
		func(_ context.Context, server *testcontainers.PostgresServer) error { return server.Thaw() },
	},
}

// Postgres is killed or frozen under a receiver: every event is answered with 503 until it
// is back, and none is lost.
func TestPostgresGoesAwayUnderAReceiver(t *testing.T) {
	t.Parallel()
	for name, outage := range outages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := own.Postgres(t, testcontainers.PostgresOptions{})
			s := newSite(t, testcontainers.DatabaseOn(t, server))
			s.hire = func(int) role { return role{Timeout: 2 * time.Second} }
			s.postgres = withConnectTimeout(t, s.postgres)
			s.deliver(3)
			for turn := range 2 {
				must(t, outage.begin(server))
				id := fmt.Sprint("evt_outage", turn)
				for nth := range 3 {
					if status := s.attempt(id, nth); status != http.StatusServiceUnavailable {
						t.Errorf("answered %d while Postgres is away", status)
					}
				}
				must(t, outage.end(within(t), server))
				s.reconnect()
				s.insist(id)
				s.deliver(3)
			}
			s.balance()
		})
	}
}

// withConnectTimeout bounds what no context does in the driver: the wait for a server that
// takes a connection and says nothing.
func withConnectTimeout(t *testing.T, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	must(t, err)
	q := u.Query()
	q.Set("connect_timeout", "2")
	u.RawQuery = q.Encode()
	return u.String()
}

// reconnect waits until the test's own pool has no broken connection any more.
func (s *site) reconnect() {
	s.t.Helper()
	var one int
	err := sql.ErrConnDone
	for deadline := time.Now().Add(limit); err != nil && time.Now().Before(deadline); {
		err = s.db.QueryRow(`SELECT 1`).Scan(&one)
	}
	must(s.t, err)
}
