package faults_test

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/testcontainers"
)

// What a worker logs when it stops fetching, and when it fetches again.
const (
	pauses  = "fetching no messages until what they need is back"
	resumes = "fetching messages again after a pause"
)

// README: Postgres is away; nothing is acknowledged that is not committed, no
// message becomes a dead letter for it, the subscriber pauses.
func TestPostgresDownForLongerThanAnyRetryBudget(t *testing.T) {
	t.Parallel()
	server := ownPostgres(t)
	s := siteOn(t, testcontainers.DatabaseOn(t, server), testcontainers.NATS(t).URL)
	s.order(200)
	r := s.worker("worker")
	r.MaxErrors = 1 // one error that counts, and the message is a dead letter
	worker := start(t, r)
	stop := s.load(5 * time.Millisecond)
	worker.Await("committed", 50)
	must(t, server.Kill())

	eventually(t, "the worker pauses", func() bool { return worker.Logged(pauses) > 0 })
	// One failed delivery that counted would have used up the budget. Postgres
	// stays away until the worker has looked for it several times more.
	worker.Await("unreachable", worker.Times("unreachable")+4)
	if worker.Logged(resumes) > 0 {
		t.Error("the worker fetches messages while Postgres is away")
	}
	if worker.Times("failed") == 0 {
		t.Fatal("no message was under way when Postgres went away")
	}
	must(t, server.Start(t.Context()))
	eventually(t, "the worker goes on", func() bool { return worker.Logged(resumes) > 0 })
	stop()
	s.billed(worker)
	s.owed()
}

// The same for restarts in good order, which end sessions with errors of their
// own.
func TestPostgresRestartsUnderLoad(t *testing.T) {
	t.Parallel()
	server := ownPostgres(t)
	s := siteOn(t, testcontainers.DatabaseOn(t, server), testcontainers.NATS(t).URL)
	r := s.worker("worker")
	r.MaxErrors = 1
	worker := start(t, r)
	stop := s.load(2 * time.Millisecond)
	for range 3 {
		worker.Await("committed", worker.Times("committed")+100)
		must(t, server.Restart(t.Context()))
	}
	worker.Await("committed", worker.Times("committed")+1)
	stop()
	s.billed(worker)
	s.owed()
	if worker.Times("failed") == 0 {
		t.Error("no message was under way in any of the restarts")
	}
}

// A COMMIT that waits for a synchronous standby would succeed without it if it
// were cancelled. It is not cancelled, and what waits for it is not acknowledged.
func TestACancelledCommitIsNotAcked(t *testing.T) {
	t.Parallel()
	server := ownPostgres(t)
	s := siteOn(t, testcontainers.DatabaseOn(t, server), testcontainers.NATS(t).URL)
	release := s.holdCommits()
	key := s.order(1)
	r := s.worker("worker")
	r.DrainTimeout = 200 * time.Millisecond
	worker := start(t, r)
	worker.Await("handling", 1)
	s.wantWaiting(2) // its COMMIT and that of holdCommits

	worker.Signal(syscall.SIGTERM) // the router closes
	failed := worker.Await("failed commit "+key, 1)
	if !strings.Contains(failed, oncemill.ErrDrained.Error()) {
		t.Errorf("Once: %s", failed)
	}
	if err := worker.Wait(); err != nil {
		t.Errorf("the worker: %v", err)
	}
	if worker.Times("committed") > 0 {
		t.Error("a COMMIT that nobody had confirmed was taken for one")
	}
	s.wantUnacked()
	s.cancelledOnce()
	s.wantWaiting(3)

	// While the outcome is open, the redelivery waits for it and is not
	// acknowledged either.
	r = s.worker("heir")
	r.LockWait = 100 * time.Millisecond
	heir := start(t, r)
	if failed := heir.Await("failed claim "+key, 1); !strings.Contains(failed, oncemill.ErrInFlight.Error()) {
		t.Errorf("the redelivery: %s", failed)
	}
	s.wantUnacked()
	release()
	heir.Await("duplicate "+key, 1)
	s.billed(heir)
	s.owed()
	if n := s.effects("direct"); n != 1 {
		t.Errorf("%d effects of the cancelled call, want the 1 that was committed when it could", n)
	}
}

// holdCommits makes every COMMIT wait for a standby that is not there, until the
// returned function is called. It returns when that is in force, with one COMMIT
// of its own waiting.
func (s *site) holdCommits() (release func()) {
	s.t.Helper()
	s.exec(`CREATE TABLE probes (n integer)`)
	s.exec(`ALTER SYSTEM SET synchronous_standby_names = 'nowhere'`)
	s.exec(`SELECT pg_reload_conf()`)
	released, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			_, err := s.db.Exec(`INSERT INTO probes VALUES (1)`)
			select {
			case <-released:
				ended <- err
				return
			default: // the setting was not in force yet
			}
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	s.wantWaiting(1)
	return func() {
		s.t.Helper()
		close(released)
		s.exec(`ALTER SYSTEM RESET synchronous_standby_names`)
		s.exec(`SELECT pg_reload_conf()`)
		must(s.t, <-ended)
	}
}

// wantWaiting waits until so many COMMITs wait for a standby.
func (s *site) wantWaiting(n int) {
	s.t.Helper()
	eventually(s.t, "COMMITs wait for the standby", func() bool {
		return s.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'SyncRep'`) == n
	})
}

// wantUnacked wants the broker to have heard of no ack.
func (s *site) wantUnacked() {
	s.t.Helper()
	info, err := s.consumer(billing+"~"+s.orders, s.orders)
	must(s.t, err)
	if info.AckFloor.Consumer != 0 || info.AckFloor.Stream != 0 {
		s.t.Errorf("the broker has heard of an ack: %+v", info.AckFloor)
	}
}

// cancelledOnce calls Once without a router, with a context that is cancelled
// before its COMMIT.
func (s *site) cancelledOnce() {
	s.t.Helper()
	inbox := &oncemill.Inbox{DB: s.db, DrainTimeout: 200 * time.Millisecond}
	ctx, cancel := context.WithCancel(s.t.Context())
	defer cancel()
	err := inbox.Consumer("direct").Once(ctx, "k", func(ctx context.Context, tx oncemill.Tx) error {
		cancel()
		_, err := tx.ExecContext(ctx, `INSERT INTO effects (handler, key, number) VALUES ('direct', 'k', 0)`)
		return err
	})
	if err == nil {
		s.t.Error("Once returned nil for a COMMIT that nobody had confirmed")
	}
}
