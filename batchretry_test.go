package oncemill_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
)

// What failed in a batch of its own needs no second try.
func TestASingleMessageThatFailsRunsOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := (&oncemill.Inbox{DB: f.db, Batch: 10}).Consumer("test")
	runs := 0
	err := c.Once(within(t), "k", func(context.Context, oncemill.Tx) error {
		runs++
		return errors.New("no")
	})
	if !oncemill.IsHandlerError(err) || runs != 1 {
		t.Errorf("ran %d times: %v", runs, err)
	}
}

// A handler that runs into its message's deadline has failed, as it would have alone.
func TestADeadlineInABatchIsItsHandlers(t *testing.T) {
	t.Parallel()
	b := newBatched(newFixture(t), &oncemill.Inbox{})
	inner, cancel := context.WithCancel(within(t))
	defer cancel()
	b.effects("a")
	b.add(&deadline{Context: inner}, "b", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	})
	b.effects("c")
	errs := b.run()
	must(t, errors.Join(errs[0], errs[2]))
	want(t, errs[1], context.DeadlineExceeded)
	if !oncemill.IsHandlerError(errs[1]) {
		t.Errorf("%v does not count", errs[1])
	}
	b.wantOneEach("a", "c")
	b.wantNone("b")
}

// stateError is an error of Postgres, as far as one can tell.
type stateError string

func (e stateError) Error() string    { return string(e) }
func (e stateError) SQLState() string { return string(e) }

// Whoever loses each time is not tried for ever.
func TestADeadlockAtEachTryRunsAloneInTheEnd(t *testing.T) {
	t.Parallel()
	b := newBatched(newFixture(t), &oncemill.Inbox{})
	b.effects("a")
	b.add(within(t), "b", oncemill.ClaimOptions{}, func(context.Context, oncemill.Tx) error { return stateError("40P01") })
	errs := b.run()
	must(t, errs[0])
	want(t, errs[1], stateError("40P01"))
	b.wantOneEach("a")
}

// Members that found no time have nothing to do with a COMMIT whose answer is lost.
func TestALostCommitConcernsOnlyThoseWhoHadTheirTurn(t *testing.T) {
	t.Parallel()
	for when, committed := range map[string]int{"before": 0, "after": 1} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			p, url := f.throughProxy()
			b := newBatched(f, &oncemill.Inbox{DB: f.open("postgres", url), BatchTime: time.Millisecond})
			var cut atomic.Bool
			b.add(within(t), "a", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
				time.Sleep(10 * time.Millisecond)
				if cut.CompareAndSwap(false, true) {
					p.cutNext(when)
				}
				return effect("a")(ctx, tx)
			})
			b.effects("b")
			errs := b.run()
			want(t, errs[0], oncemill.ErrUnavailable)
			must(t, errs[1])
			b.wantOneEach("b")
			b.wantEffects("a", committed)
			must(t, b.c.Once(within(t), "a", effect("a")))
			b.wantOneEach("a")
		})
	}
}

// A claim that gets into a deadlock with somebody else's is asked for again.
func TestAClaimThatDeadlocksIsTriedAgain(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	b := newBatched(f, &oncemill.Inbox{LockWait: 20 * time.Second})
	b.effects("a", "b")
	tx, err := f.db.Begin()
	must(t, err)
	defer tx.Rollback()
	_, err = tx.Exec(`SET LOCAL deadlock_timeout = '10min'`) // it is the batch that finds out
	must(t, err)
	const claim = `INSERT INTO oncemill.claims (consumer, key) VALUES ('test', $1)`
	_, err = tx.Exec(claim, "b")
	must(t, err)
	go func() {
		for f.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		_, err := tx.Exec(claim, "a")
		if err != nil {
			t.Error(err)
		}
		_ = tx.Rollback()
	}()
	must(t, errors.Join(b.run()...))
	b.wantOneEach("a", "b")
}

// A COMMIT that ends in a deadlock is tried again, also when nothing else is to be done.
func TestACommitThatDeadlocksIsTriedAgain(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exec(`CREATE SEQUENCE tries`)
	f.exec(`CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		IF nextval('tries') = 1 THEN PERFORM pg_sleep(0.1); RAISE EXCEPTION 'lost' USING ERRCODE = '40P01'; END IF; RETURN NULL; END $$`)
	f.exec(`CREATE TABLE deferred (name text)`)
	f.exec(`CREATE CONSTRAINT TRIGGER lose AFTER INSERT ON deferred DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION lose()`)
	b := newBatched(f, &oncemill.Inbox{})
	ctx, cancel := context.WithTimeout(within(t), 10*time.Second)
	defer cancel()
	b.add(ctx, "a", oncemill.ClaimOptions{}, execs(`INSERT INTO deferred VALUES ('a')`, `INSERT INTO effects VALUES ('a')`))
	must(t, errors.Join(b.run()...))
	b.wantOneEach("a")
}
