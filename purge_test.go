package oncemill_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
)

// age makes a consumer's claims older than they are.
func (f *fixture) age(consumer string, by time.Duration) {
	f.t.Helper()
	f.exec(`UPDATE oncemill.claims SET settled_at = settled_at - $2 * interval '1 second' WHERE consumer = $1`, consumer, by.Seconds())
}

func TestPurgeForgetsOldClaimsAndRefusesMessagesFromThatTime(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var purged []string
	in := &oncemill.Inbox{DB: f.db, Retention: time.Hour, Observer: &oncemill.Observer{
		Purged: func(_ context.Context, consumer string, n int64) {
			purged = append(purged, fmt.Sprint(consumer, " ", n))
		},
	}}
	c, other := in.Consumer("test"), (&oncemill.Inbox{DB: f.db}).Consumer("other")
	// More than two batches.
	f.exec(`INSERT INTO oncemill.claims (consumer, key) SELECT 'test', 'old' || i FROM generate_series(0, 2499) AS i`)
	must(t, other.Once(within(t), "old0", effect("other")))
	f.age("test", 2*time.Hour)
	f.age("other", 2*time.Hour)
	must(t, c.Once(within(t), "new", effect("new")))

	n, err := in.Purge(within(t))
	must(t, err)
	if n != 2500 || fmt.Sprint(purged) != "[test 1000 test 1000 test 500]" {
		t.Errorf("purged %d %v, want the 2500 of this inbox's consumer", n, purged)
	}
	if left := f.count(`SELECT count(*) FROM oncemill.claims`); left != 2 {
		t.Errorf("%d claims left, want 2", left)
	}

	again := func(c *oncemill.Consumer, key string, origin time.Duration) error {
		return c.OnceWith(within(t), key, oncemill.ClaimOptions{Origin: time.Now().Add(-origin)}, effect(key))
	}
	err = again(c, "old0", 2*time.Hour)
	want(t, err, oncemill.ErrTooOld)
	if oncemill.IsHandlerError(err) {
		t.Errorf("%v must not count towards a dead letter", err)
	}
	f.wantEffects("old0", 0)
	must(t, again(c, "young", 10*time.Minute))
	f.wantEffects("young", 1)
	must(t, again(other, "elsewhere", 2*time.Hour)) // nothing of this consumer's was purged
	f.wantEffects("elsewhere", 1)
	must(t, again(c, "new", 2*time.Hour)) // a duplicate stays one, however old
	f.wantEffects("new", 1)
}

func TestPurgeDoesNotRefuseTheBacklogOfANewConsumer(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	in := &oncemill.Inbox{DB: f.db, Retention: time.Hour}
	c := in.Consumer("test")
	must(t, c.Once(within(t), "first", effect("a")))
	_, err := in.Purge(within(t))
	must(t, err)
	must(t, c.OnceWith(within(t), "historic", oncemill.ClaimOptions{Origin: time.Now().AddDate(-1, 0, 0)}, effect("historic")))
	f.wantEffects("historic", 1)
}

func TestPurgeLeavesClaimsWithinTheClockMargin(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	in := &oncemill.Inbox{DB: f.db, Retention: time.Hour}
	c := in.Consumer("test")
	must(t, c.Once(within(t), "older", effect("a")))
	f.age("test", 30*time.Minute)
	must(t, c.Once(within(t), "k", effect("a")))
	f.age("test", time.Hour+2*time.Minute)
	n, err := in.Purge(within(t))
	must(t, err)
	if n != 1 {
		t.Errorf("purged %d claims, want only the one beyond the margin", n)
	}
}

func TestTheWatermarkNeverMovesBack(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	watermark := func(retention time.Duration) (at time.Time) {
		in := &oncemill.Inbox{DB: f.db, Retention: retention}
		c := in.Consumer("test")
		must(t, c.Once(within(t), fmt.Sprint(retention), effect("a")))
		f.age("test", 30*24*time.Hour)
		_, err := in.Purge(within(t))
		must(t, err)
		must(t, f.db.QueryRow(`SELECT purged_before FROM oncemill.watermarks WHERE consumer = 'test'`).Scan(&at))
		return at
	}
	short := watermark(time.Hour)
	if long := watermark(24 * time.Hour); long.Before(short) {
		t.Errorf("moved from %v back to %v", short, long)
	}
}

func TestRunPurgesUntilItsContextEnds(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	purged := make(chan int64, 1)
	in := &oncemill.Inbox{DB: f.db, Retention: time.Hour, Observer: &oncemill.Observer{
		Purged: func(_ context.Context, _ string, n int64) { purged <- n },
	}}
	must(t, in.Consumer("test").Once(within(t), "k", effect("a")))
	f.age("test", 2*time.Hour)
	f.exec(`INSERT INTO oncemill.handler_errors (consumer, key, last_error, last_at) VALUES ('test', 'k', 'no', now() - interval '2 hours')`)
	ctx, cancel := context.WithCancel(within(t))
	done := make(chan error)
	go func() { done <- in.Run(ctx) }()
	if n := <-purged; n != 1 {
		t.Errorf("purged %d", n)
	}
	cancel()
	must(t, <-done)
}

func TestPurgeForgetsOldHandlerErrors(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	in := &oncemill.Inbox{DB: f.db, Retention: time.Hour}
	in.Consumer("test")
	f.exec(`INSERT INTO oncemill.handler_errors (consumer, key, last_error, last_at)
		VALUES ('test', 'old', 'no', now() - interval '2 hours'), ('test', 'new', 'no', now())`)
	_, err := in.Purge(within(t))
	must(t, err)
	if n := f.count(`SELECT count(*) FROM oncemill.handler_errors`); n != 1 {
		t.Errorf("%d left, want 1", n)
	}
}
