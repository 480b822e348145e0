package oncemill_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
)

// A key that waits for another transaction must not keep others waiting for as long.
func TestABlockedKeyDoesNotHoldUpThoseItSharesAStatementWith(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	in := &oncemill.Inbox{DB: f.db, ClaimBatch: 64, LockWait: 8 * time.Second}
	c := in.Consumer("test")
	claim(t, c, "warm", oncemill.ClaimOptions{})
	tx, err := f.db.Begin()
	must(t, err)
	defer tx.Rollback()
	_, err = tx.Exec(`INSERT INTO oncemill.claims (consumer, key, outcome) VALUES ('test', 'blocked 0', 'settled'), ('test', 'blocked 1', 'settled')`)
	must(t, err)
	blocked := make(chan error, 2)
	start := time.Now()
	for i := range 2 { // one for each lane
		go func() {
			_, err := c.Claim(within(t), fmt.Sprint("blocked ", i), oncemill.ClaimOptions{})
			blocked <- err
		}()
		f.waiting(i + 1)
	}
	together(20, func(i int) {
		if _, err := c.Claim(within(t), fmt.Sprint("free ", i), oncemill.ClaimOptions{}); err != nil {
			t.Error(err)
		}
	})
	if took := time.Since(start); took >= in.LockWait {
		t.Errorf("claims of keys that are free took %v, as long as LockWait", took)
	}
	want(t, <-blocked, oncemill.ErrInFlight)
	want(t, <-blocked, oncemill.ErrInFlight)
	if took := time.Since(start); took < in.LockWait {
		t.Errorf("ErrInFlight after %v, before LockWait", took)
	}
}

func TestABlockedKeyOfASharedStatementEndsAtStatementTimeout(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "settings of the connection string")
	f := newFixture(t)
	tx, err := f.db.Begin()
	must(t, err)
	defer tx.Rollback()
	_, err = tx.Exec(`INSERT INTO oncemill.claims (consumer, key, outcome) VALUES ('test', 'blocked', 'settled')`)
	must(t, err)
	in := &oncemill.Inbox{DB: f.open("postgres", f.url+"&statement_timeout=500"), ClaimBatch: 64, LockWait: 20 * time.Second}
	together(8, func(i int) {
		key := "blocked"
		if i > 0 {
			key = fmt.Sprint(i)
		}
		_, err := in.Consumer("test").Claim(within(t), key, oncemill.ClaimOptions{})
		if (i == 0) != errors.Is(err, oncemill.ErrInFlight) || i > 0 && err != nil {
			t.Errorf("%s: %v", key, err)
		}
	})
}

// The same claims settled in two processes, in any order.
func TestSharedSettlementsOfTwoProcessesDoNotFailEachOther(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	processes := [2]*oncemill.Consumer{sharing(f.open("postgres", f.url)).Consumer("test"), sharing(f.open("pgx", f.url)).Consumer("test")}
	for _, c := range processes {
		c.Inbox().DB.SetMaxOpenConns(6)
	}
	const claims, rounds = 40, 5
	for round := range rounds {
		tokens := make([]int64, claims)
		together(claims, func(i int) {
			c, err := processes[i%2].Claim(within(t), fmt.Sprint(round, " ", i), oncemill.ClaimOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			tokens[i] = c.Token()
		})
		together(4*claims, func(i int) {
			i, process := i%claims, i/claims%2
			if process == 1 {
				i = claims - 1 - i
			}
			key := fmt.Sprint(round, " ", i)
			if err := processes[process].Resume(key, tokens[i]).Settle(within(t), []byte("r"), nil); err != nil {
				t.Error(err)
			}
			if _, err := processes[process].Claim(within(t), fmt.Sprint(round, " ", claims-1-i), oncemill.ClaimOptions{Patient: true}); err == nil {
				t.Error("claimed twice")
			}
		})
	}
	if n := f.count(`SELECT count(*) FROM oncemill.events WHERE kind = 'settled'`); n != claims*rounds {
		t.Errorf("%d events of settlements, want %d", n, claims*rounds)
	}
}

func TestASharedStatementInADeadlockIsTriedAgain(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "settings of the connection string")
	f := newFixture(t)
	in := &oncemill.Inbox{DB: f.db, ClaimBatch: 64, LockWait: 40 * time.Second}
	c := in.Consumer("test")
	var claims []*oncemill.Claim
	for i := range 12 {
		claims = append(claims, claim(t, c, fmt.Sprintf("%02d", i), oncemill.ClaimOptions{}))
	}
	tx, err := f.open("postgres", f.url+"&deadlock_timeout=20000").Begin() // the victim is the other
	must(t, err)
	defer tx.Rollback()
	_, err = tx.Exec(`SELECT FROM oncemill.claims WHERE key = '11' FOR UPDATE`)
	must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		together(len(claims), func(i int) {
			if err := claims[i].Settle(within(t), nil, nil); err != nil {
				t.Error(err)
			}
		})
	}()
	f.waiting(1)
	for i := range 11 {
		_, err = tx.Exec(`SELECT FROM oncemill.claims WHERE key = $1 FOR UPDATE`, fmt.Sprintf("%02d", i))
		must(t, err)
	}
	must(t, tx.Commit())
	<-done
	if n := f.count(`SELECT count(*) FROM oncemill.claims WHERE outcome = 'settled'`); n != len(claims) {
		t.Errorf("%d of %d claims are settled", n, len(claims))
	}
}

// Callers whose contexts end are not kept, and keep nobody.
func TestACallerOfASharedStatementMayGiveUp(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	db := f.open("postgres", f.url)
	db.SetMaxOpenConns(1)
	c := sharing(db).Consumer("test")
	kept := claim(t, c, "warm", oncemill.ClaimOptions{})
	conn, err := db.Conn(within(t)) // nobody gets another
	must(t, err)
	ctx, cancel := context.WithTimeout(within(t), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	together(10, func(i int) {
		if _, err := c.Claim(ctx, fmt.Sprint("gone ", i), oncemill.ClaimOptions{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("callers with a deadline of 200 ms had their answer after %v", took)
	}
	done := make(chan error, 2)
	go func() { done <- kept.Settle(ctx, nil, nil) }()
	go func() {
		_, err := c.Claim(within(t), "patient", oncemill.ClaimOptions{})
		done <- err
	}()
	must(t, conn.Close())
	must(t, <-done)
	must(t, <-done)
	for deadline := time.Now().Add(8 * time.Second); f.count(`SELECT count(*) FROM oncemill.claims WHERE key LIKE 'gone%'`) > 0; {
		if time.Now().After(deadline) {
			t.Fatal("claims are held by callers that had gone before they were made")
		}
	}
}

// A settlement does not end with its caller's context, but DrainTimeout later.
func TestASharedSettlementThatCannotBeMadeEndsWithTheDrain(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	db := f.open("postgres", f.url)
	db.SetMaxOpenConns(1)
	in := &oncemill.Inbox{DB: db, ClaimBatch: 64, DrainTimeout: 2 * time.Second}
	c := claim(t, in.Consumer("test"), "k", oncemill.ClaimOptions{})
	conn, err := db.Conn(within(t))
	must(t, err)
	defer conn.Close()
	ctx, cancel := context.WithCancel(within(t))
	cancel()
	start := time.Now()
	want(t, c.Settle(ctx, nil, nil), oncemill.ErrDrained)
	if took := time.Since(start); took < in.DrainTimeout || took > 2*in.DrainTimeout-200*time.Millisecond {
		t.Errorf("given up after %v, want DrainTimeout, %v", took, in.DrainTimeout)
	}
}
