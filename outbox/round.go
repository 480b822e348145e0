package outbox

import (
	"cmp"
	"context"
	"sync"
	"time"
)

// connectGrace is how long a published batch waits for the one after it, if that
// has no connection yet, and aloneFor for how long none is tried again.
const (
	connectGrace = 100 * time.Millisecond
	aloneFor     = time.Second
)

// round publishes one batch. more means that there may be further rows that are
// due now. An error means that the database or the broker is away, or the broker for some
// of the rows while others go on; rows whose own fault it is are dealt with in the table.
//
// While the batch is on its way, the one before it is settled and the next one is
// fetched, on another connection. Batches are published one after another, and
// settled in that order: should rows of one stay behind or have to be published
// again, then before those of the next, which may share an ordering key.
func (l *loop) round(ctx context.Context) (more bool, err error) {
	b := l.ahead
	if b == nil {
		if b, more, err = l.take(ctx, l.bytes); b == nil {
			return more, cmp.Or(err, l.aside.why())
		}
	}
	if l.ahead = b; ctx.Err() != nil {
		return false, nil
	}
	join := l.beside(ctx, b)
	if err := b.confirmation.wait(ctx); err != nil {
		return false, l.leaveUnconfirmed(b, join, err)
	}
	took := l.publish(b)
	next, err := join()
	l.pace.adapt(b, took, l.batchTime(), l.batch())
	l.ahead = nil
	if err != nil {
		l.giveBack(b)
		return false, err
	}
	if next != nil && len(b.verdicts.untouched) == 0 {
		l.behind, l.ahead = b, next
		return true, l.aside.why()
	}
	if next != nil {
		l.giveBack(next)
	}
	return l.conclude(b)
}

// leaveUnconfirmed gives back a batch that is not published, since the standby may lack it.
func (l *loop) leaveUnconfirmed(b *batch, join func() (*batch, error), because error) error {
	next, err := join()
	if next != nil {
		l.giveBack(next)
	}
	l.ahead, l.pace.full = nil, 0
	b.close(because)
	l.source.reset()
	return cmp.Or(err, because)
}

// conclude settles a batch that no other follows yet.
func (l *loop) conclude(b *batch) (more bool, err error) {
	if err := l.settle(b); err != nil {
		return false, err
	}
	v := b.verdicts
	if len(v.untouched) == 0 {
		return b.again || v.waiting > 0 && len(v.published) > 0, l.aside.why()
	}
	l.source.putBack(b.first)
	if l.publishing.Err() != nil {
		return false, v.unavailable
	}
	refused := v.refusedTopics()
	if len(refused) == 0 { // a broker that takes a part of all is slow, or is just going away: the next round will tell
		return true, l.aside.why()
	}
	some := l.aside.put(refused, l.source.inOrder(), v.unavailable)
	return some || len(v.published) > 0, v.unavailable
}

// refusedTopics returns the rows that are left as they are because the broker was
// unavailable, without those of topics of which it has taken others.
func (v *verdicts) refusedTopics() (rows []Row) {
	for _, row := range v.untouched {
		if !v.took[row.Topic] {
			rows = append(rows, row)
		}
	}
	return rows
}

// finish ends what is under way when Run's context has ended.
func (l *loop) finish() error {
	var err error
	if l.behind != nil {
		err = l.settle(l.behind)
	}
	if l.ahead != nil {
		l.giveBack(l.ahead)
	}
	return err
}

// beside settles the batch before b and fetches the one after it, while b is
// published. join, called once it is, waits for both. An error is that of the
// batch before.
func (l *loop) beside(ctx context.Context, b *batch) (join func() (next *batch, err error)) {
	behind, fetch := l.behind, l.mayFetchAhead(b)
	if l.behind = nil; behind == nil && !fetch {
		return func() (*batch, error) { return nil, nil }
	}
	connect, stop := context.WithCancel(ctx)
	published := make(chan struct{})
	var next *batch
	var err error
	var tasks sync.WaitGroup
	tasks.Go(func() {
		if behind != nil {
			err = l.settle(behind)
		}
		if fetch && err == nil {
			next = l.fetchAhead(connect, published)
		}
	})
	return func() (*batch, error) {
		close(published)
		timer := time.AfterFunc(connectGrace, stop)
		tasks.Wait()
		timer.Stop()
		stop()
		return next, err
	}
}

// mayFetchAhead reports whether there is work for a second transaction and room
// in memory. Rows that b holds without having read them are the next ones: they
// can be fetched only after it.
func (l *loop) mayFetchAhead(b *batch) bool {
	return l.pace.full > 0 && b.more && b.read() == b.locked && b.bytes <= l.bytes/2 &&
		l.standby.leaves(l.DB) != 1 && time.Now().After(l.alone)
}

// fetchAhead fetches a batch, and gives it back if the broker has not published
// the one before for long: locked rows should not wait for a slow broker, when
// another relay may have a better one. If it fails, the next round tells why.
func (l *loop) fetchAhead(ctx context.Context, published <-chan struct{}) *batch {
	b, _, err := l.take(ctx, l.bytes/2)
	if err != nil {
		l.alone = time.Now().Add(aloneFor)
	}
	if b == nil {
		return nil
	}
	timer := time.NewTimer(l.publishTimeout() / 4)
	defer timer.Stop()
	select {
	case <-published:
		return b
	case <-timer.C:
		l.giveBack(b)
		return nil
	}
}
