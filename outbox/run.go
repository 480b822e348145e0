package outbox

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/oncemill/oncemill/internal/dbcheck"
	"github.com/oncemill/oncemill/schema"
)

// Run publishes rows until ctx ends, then finishes the batch that it has begun,
// and returns nil. It returns an error at the start if Check does, and at the
// end if the batch was not finished within DrainTimeout. A database or broker
// that goes away later does not end it: it waits and tries again. At most one
// Run of a Relay may go on at a time.
func (r *Relay) Run(ctx context.Context) error {
	if err := r.Check(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	stopListening := r.listen(ctx)
	defer stopListening()
	var tasks sync.WaitGroup
	tasks.Go(func() { r.schedule(ctx) })
	if r.Keep > 0 {
		tasks.Go(func() { r.purgeKept(ctx, r.Keep) })
	}
	defer tasks.Wait() // ctx has ended then
	publishing, release := outlive(ctx, r.drainTimeout())
	defer release()
	settling, release := outlive(publishing, settleTimeout)
	defer release()
	for {
		version, err := r.awaitVersion(ctx, schema.Oldest)
		if err != nil {
			return nil // ctx has ended
		}
		again, err := r.work(ctx, publishing, settling, version)
		if !again {
			return err
		}
	}
}

// work runs the loops until ctx ends. again means that the schema has become another one,
// and that they should be run anew.
func (r *Relay) work(ctx, publishing, settling context.Context, version int) (again bool, err error) {
	until, stop := context.WithCancel(ctx)
	defer stop()
	loops := r.loops(publishing, settling, version)
	r.begin(loops)
	var tasks sync.WaitGroup
	errs := make([]error, len(loops))
	for i, l := range loops {
		tasks.Go(func() { errs[i] = l.run(until) })
	}
	if version < orderedVersion {
		tasks.Go(func() {
			_, _ = r.awaitVersion(until, orderedVersion)
			stop()
		})
	}
	tasks.Wait()
	return ctx.Err() == nil, cmp.Or(errs...)
}

// orderedVersion is the schema version from which on rows with an ordering key are kept
// in order by several relays. On an older one all rows come from one loop.
const orderedVersion = 6

// awaitVersion returns the schema's version once it is one that is wanted, or an error when
// ctx ends.
func (r *Relay) awaitVersion(ctx context.Context, wanted int) (version int, err error) {
	for ctx.Err() == nil {
		if version, err := dbcheck.Version(ctx, r.DB, r.Schema); err == nil && version >= wanted {
			return version, nil
		}
		wait(ctx, versionEvery, nil)
	}
	return 0, ctx.Err()
}

// versionEvery is how often a relay on an older schema looks whether it still is.
const versionEvery = 5 * time.Second

// loops returns for each Sink what relays rows with ordering keys, and what relays the
// others.
func (r *Relay) loops(publishing, settling context.Context, version int) (all []*loop) {
	top := new(highest)
	top.id.Store(bottom)
	for _, to := range r.destinations() {
		mixed := version < orderedVersion || to.sink == unrouted{}
		all = append(all, &loop{to: to, bytes: batchBytes, source: &scan{schema: r.Schema, topics: to.topics, keyed: mixed, floor: bottom, highest: top}})
		if !mixed {
			all = append(all, &loop{to: to, bytes: orderedBytes, source: newOrdered(r.Schema, to, top)})
		}
	}
	shared := newStandby(len(all))
	for _, l := range all {
		l.standby = shared
		l.Relay, l.publishing, l.settling = r, publishing, settling
		l.wake = make(chan struct{}, 1)
		l.pace, l.deferred = pace{size: min(r.batch(), firstBatch)}, make(map[int64]time.Time)
	}
	return all
}

// run relays until ctx ends.
func (l *loop) run(ctx context.Context) error {
	for ctx.Err() == nil {
		more, err := l.round(ctx)
		if ctx.Err() != nil {
			return l.cutOff(errors.Join(err, l.finish()))
		}
		l.record(l, err)
		if err == nil {
			l.failures = 0
		}
		l.pause(ctx, more, err)
	}
	return l.cutOff(l.finish())
}

// A loop is one Run of a Relay, for the rows of one source.
type loop struct {
	*Relay
	to     destination
	source source
	bytes  int // of rows that it has in memory, about
	wake   chan struct{}

	standby *standby // that of all loops

	// publishing is the context of the Sink. It ends DrainTimeout after Run's.
	// settling is that of transactions, and ends later still: what the broker has
	// acknowledged should be deleted, and no COMMIT be cancelled half-way.
	publishing, settling context.Context

	pace  pace  // how much fetches take
	aside aside // what they leave out

	server int64 // on which the last one was: see meet

	behind *batch    // published, and not settled before the next one is on its way
	ahead  *batch    // fetched, to be published next
	alone  time.Time // until when there is no second connection to be had

	failures int                 // rounds that failed in a row
	warned   time.Time           // when it was last said that rows are deferred
	deferred map[int64]time.Time // rows that this loop has deferred, by id, and when they fall due
	due      time.Time           // when the last of the rows falls due that this loop has deferred; zero if that has been looked at
}

// outlive returns a context that ends a while after ctx does. release frees it.
func outlive(ctx context.Context, while time.Duration) (longer context.Context, release func()) {
	longer, cut := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(while)
		defer timer.Stop()
		select {
		case <-timer.C:
			cut(errCut)
		case <-longer.Done():
		}
	})
	return longer, func() {
		stop()
		cut(nil)
	}
}

// cutOff turns a round's error at the end of Run into Run's.
func (l *loop) cutOff(err error) error {
	if err != nil && errors.Is(context.Cause(l.publishing), errCut) {
		return errCut
	}
	return nil
}

// pause waits until the next round is due.
func (l *loop) pause(ctx context.Context, more bool, err error) {
	switch {
	case more:
	case err != nil:
		l.rest(ctx, err)
	default:
		poll := l.pollInterval()
		if !l.due.IsZero() {
			poll = min(poll, l.minBackoff())
		}
		wait(ctx, min(l.source.pause(poll), l.aside.wait(poll)), l.wake)
	}
}

// rest waits until a round is repeated that failed, ever longer, and nothing wakes it up:
// the database or the broker is away. If it is the broker, other rows may go out.
func (l *loop) rest(ctx context.Context, err error) {
	if l.aside.err != nil && l.aside.err == err {
		wait(ctx, l.aside.wait(0), l.wake)
		return
	}
	wait(ctx, backoff(minAway, maxAway, l.failures), nil)
	l.failures++
}

// wait returns after d, or when ctx ends or woken has something.
func wait(ctx context.Context, d time.Duration, woken <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-woken:
	}
}

// backoff returns least doubled as many times as there were attempts before, at
// most most, give or take a quarter so that what failed together does not come
// back together.
func backoff(least, most time.Duration, before int) time.Duration {
	d := least
	for range before {
		if d >= most {
			break
		}
		d *= 2
	}
	d = min(d, most)
	return d - d/4 + rand.N(d/2+1)
}

// logger is the Relay's, and names the Sink if there are several.
func (l *loop) logger() *slog.Logger {
	if l.to.name == "" {
		return orDefault(l.Logger)
	}
	return orDefault(l.Logger).With("sink", l.to.name)
}
