package guard_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/proxy"
)

// losing puts a proxy in front of a guard, which loses the answers to some of the requests
// whose path begins so.
func losing(t *testing.T, guard string, every int64, paths ...string) (*proxy.Proxy, string) {
	t.Helper()
	var seen atomic.Int64
	return proxy.Through(t, guard, func() proxy.Watch {
		return func(request []byte) proxy.Loss {
			for _, path := range paths {
				if bytes.HasPrefix(request, []byte("POST "+path)) && seen.Add(1)%every == 0 {
					return proxy.TheAnswer
				}
			}
			return proxy.Nothing
		}
	})
}

// Guards are killed and started again in the middle of claims and settlements, Postgres is
// killed twice, and answers are lost on the way. There is never a second holder, and every
// caller that may go on makes its effect once.
func TestKillingAGuardNeverYieldsTwo(t *testing.T) {
	t.Parallel()
	const rounds, ids, callers, timesEach = 32, 12, 12, 2
	server := ownPostgres(t)
	s := siteOn(t, testcontainers.DatabaseOn(t, server))
	var guards []string
	var proxies []*proxy.Proxy
	for _, guard := range s.guards {
		p, address := losing(t, guard.url, 9, "/claim", "/settle/", "/release/")
		guards, proxies = append(guards, address), append(proxies, p)
	}
	c := newCrowd(s, callers, limit, guards...)
	kills := 0
	for round := 0; round < rounds && !t.Failed(); round++ {
		tasks := make([]int, 0, timesEach*ids)
		for i := range cap(tasks) {
			tasks = append(tasks, round*ids+i/timesEach)
		}
		middle := rand.N(len(tasks))
		c.do(tasks[:middle]) // each is begun, and some are not answered
		victims := s.guards[round%2 : round%2+1]
		if round%8 == 7 {
			victims = s.guards
		}
		for _, victim := range victims {
			victim.kill()
			kills++
		}
		restarted := make(chan error, 1)
		go func() { restarted <- restart(t, server, round%12 == 6, victims) }()
		c.do(tasks[middle:])
		if err := <-restarted; err != nil {
			t.Error(err)
		}
	}
	c.stop()
	t.Logf("%d kills, %d answers %v", kills, c.heard(), c.statuses)
	for i, p := range proxies {
		if p.Losses() == 0 {
			t.Errorf("no answer of guard %d was lost: this tests nothing", i)
		}
	}
	if n := s.count(`SELECT count(*) FROM oncemill.events WHERE kind = 'repeated'`); n == 0 {
		t.Error("no claim was repeated: this tests nothing")
	}
	c.balance(rounds * ids)
}

// restart starts guards that were killed, after Postgres was too, if it shall.
func restart(t *testing.T, server *testcontainers.PostgresServer, postgres bool, guards []*daemon) error {
	if postgres {
		if err := errors.Join(server.Kill(), server.Start(within(t))); err != nil {
			return fmt.Errorf("kill Postgres: %w", err)
		}
	}
	for _, guard := range guards {
		if err := guard.start(); err != nil {
			return err
		}
	}
	return nil
}

// The answer to each first claim is lost after the guard has given it. Whoever repeats the
// claim with its nonce, at whichever guard, gets the token that was lost; others do not.
func TestALostProceedIsRecoveredByItsNonce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p, lossy := losing(t, s.guards[0].url, 1, "/claim")
	for n := range 20 {
		id := idOf(n)
		body := object{"request_id": id, "action": "order", "nonce": nonce()}
		if _, err := s.caller.once(within(t), lossy, "POST", "/claim", "", encode(body)); err == nil {
			t.Fatal("the answer was not lost")
		}
		wantReply(t, s.claims(1, id, nil), 200, "PENDING")
		wantReply(t, s.claims(0, id, object{"nonce": nonce()}), 200, "PENDING")
		again := s.proceeds(n%2, id, body)
		if twice := s.proceeds(1-n%2, id, body); twice.Token != again.Token {
			t.Errorf("%s: got the token %q, and then %q", id, again.Token, twice.Token)
		}
		s.orders(id)
		wantReply(t, s.ends(1, "settle", id, again.Token, object{"result": object{}}), 200, "committed")
		wantReply(t, s.ends(0, "settle", id, again.Token, object{"result": object{}}), 200, "already_committed")
		wantReply(t, s.claims(0, id, body), 200, "SKIP")
		s.wantPlaced(id, 1)
	}
	if p.Losses() != 20 {
		t.Errorf("%d answers were lost", p.Losses())
	}
	s.audit()
}

// A guard is frozen for longer than its callers wait. They go on at the other; and when it
// thaws, nothing happens twice.
func TestAFrozenGuard(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := newCrowd(s, 8, 500*time.Millisecond, s.guards[0].url, s.guards[1].url)
	ids := 0
	work := func(n int) {
		for range n {
			c.do([]int{ids, ids})
			ids++
		}
	}
	work(20)
	must(t, s.guards[0].process.Freeze())
	work(30)
	must(t, s.guards[0].process.Thaw())
	work(20)
	c.stop()
	if _, err := s.audits.at(s.guards[0].url).list(within(t), "/audit?limit=1000"); err != nil {
		t.Error(err) // it has done what it had been sent before
	}
	c.balance(ids)
}
