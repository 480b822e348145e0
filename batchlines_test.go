package oncemill_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/delivery"
)

// A duplicate is nothing to be told before what is in front of it has taken effect: it
// would be acknowledged, and let through what is behind it.
func TestADuplicateInALineLetsNobodyThrough(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"duplicate", "reused"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBatched(newFixture(t), &oncemill.Inbox{})
			l := newLine(b, 1, 3)
			must(t, b.fixture.consumer().OnceWith(within(t), l.name(1), oncemill.ClaimOptions{Fingerprint: []byte("1")}, effect("other")))
			acked := func(i int, opts oncemill.ClaimOptions, fn func(context.Context, oncemill.Tx) error) chan error {
				end, n := make(chan error, 1), oncemill.Waiting(b.in)
				go func() {
					err := b.c.OnceWith(l.ctx(within(t), i), l.name(i), opts, l.noting(i, fn))
					if err == nil || errors.Is(err, oncemill.ErrKeyReused) { // then it is set aside
						close(l.overs[i])
					}
					end <- err
				}()
				for oncemill.Waiting(b.in) == n {
					time.Sleep(time.Millisecond)
				}
				return end
			}
			zero := acked(0, oncemill.ClaimOptions{}, func(context.Context, oncemill.Tx) error { return errors.New("no") })
			opts := oncemill.ClaimOptions{}
			if name == "reused" {
				opts.Fingerprint = []byte("2")
			}
			one := acked(1, opts, nil)
			two := acked(2, oncemill.ClaimOptions{}, nil)
			close(b.open)
			must(t, <-b.gate)
			if err := <-zero; !oncemill.IsHandlerError(err) {
				t.Fatal(err)
			}
			select {
			case err := <-two:
				t.Fatalf("the last one took effect before the first one (%v)", err)
			case <-time.After(300 * time.Millisecond):
			}
			must(t, b.c.Once(l.ctx(within(t), 0), l.name(0), l.noting(0, nil)))
			close(l.overs[0])
			if err := <-one; (name == "reused") != errors.Is(err, oncemill.ErrKeyReused) {
				t.Error(err)
			}
			must(t, <-two)
			l.order(0, 0, 0, 2)
		})
	}
}

// A place in a line is one of a consumer.
func TestALineIsOneForEachConsumer(t *testing.T) {
	t.Parallel()
	b := newBatched(newFixture(t), &oncemill.Inbox{})
	l := newLine(b, 1, 2)
	must(t, b.fixture.consumer().Once(within(t), l.name(0), effect("other")))
	two := make(chan error, 1)
	n := oncemill.Waiting(b.in)
	go func() {
		two <- b.in.Consumer("second").Once(l.ctx(within(t), 1), l.name(1), l.noting(1, nil))
	}()
	for oncemill.Waiting(b.in) == n {
		time.Sleep(time.Millisecond)
	}
	l.add(within(t), 0, nil) // a duplicate for the first consumer
	must(t, errors.Join(b.run()...))
	select {
	case <-two:
		t.Fatal("message 1 was handled for the second consumer before message 0 was")
	case <-time.After(200 * time.Millisecond):
	}
	must(t, b.in.Consumer("second").Once(l.ctx(within(t), 0), l.name(0), l.noting(0, nil)))
	close(l.overs[0])
	must(t, <-two)
	l.order(0, 1)
}

// A message that was delivered again while the first delivery still waited has its place,
// also when that is given back.
func TestARedeliveryKeepsThePlaceOfTheFirstDelivery(t *testing.T) {
	t.Parallel()
	b := newBatched(newFixture(t), &oncemill.Inbox{})
	l := newLine(b, 1, 2)
	ctx, cancel := context.WithCancel(within(t))
	l.add(ctx, 1, nil)
	again := make(chan error, 1)
	kept := make(chan struct{})
	go func() {
		turn := &delivery.Turn{Line: 1, Number: 2, Before: l.overs[0], Kept: func() { close(kept) }}
		again <- b.c.Once(delivery.With(within(t), delivery.Info{Turn: turn}), l.name(1), l.noting(1, nil))
	}()
	<-kept
	time.Sleep(100 * time.Millisecond) // nothing tells that it waits: it is at the same place
	cancel()
	want(t, <-b.ends[0], context.Canceled)
	b.ends = nil
	l.add(within(t), 0, nil)
	must(t, errors.Join(b.run()...))
	must(t, <-again) // though message 0 is not acknowledged
	l.order(0, 1)
}

// Those who found no time go before those who have come later.
func TestWhoFoundNoTimeGoesFirst(t *testing.T) {
	t.Parallel()
	b := newBatched(newFixture(t), &oncemill.Inbox{Batch: 2, BatchTime: time.Millisecond})
	var mu sync.Mutex
	var ran []string
	names := []string{"a", "b", "c", "d"}
	for _, name := range names {
		b.add(within(t), name, oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
			mu.Lock()
			ran = append(ran, name)
			mu.Unlock()
			time.Sleep(5 * time.Millisecond)
			return effect(name)(ctx, tx)
		})
	}
	must(t, errors.Join(b.run()...))
	if !slices.Equal(ran, names) {
		t.Errorf("ran %v, want %v", ran, names)
	}
}

// A predecessor that is set aside while its successor waits for its turn in a batch, which
// then is rolled back: the successor waits no more.
func TestAPredecessorThatIsSetAsideInMidBatch(t *testing.T) {
	t.Parallel()
	b := newBatched(newFixture(t), &oncemill.Inbox{})
	l := newLine(b, 1, 2)
	var once sync.Once
	l.add(within(t), 0, func(ctx context.Context, tx oncemill.Tx) error {
		once.Do(func() { close(l.overs[0]) })
		time.Sleep(50 * time.Millisecond) // for who waits to notice
		return errors.New("no")
	})
	l.add(within(t), 1, nil)
	errs := b.run()
	if !oncemill.IsHandlerError(errs[0]) {
		t.Error(errs[0])
	}
	must(t, errs[1])
	b.wantOneEach(l.name(1))
	b.wantNone(l.name(0))
}

// Nor is a duplicate told before the one in front of it is committed.
func TestADuplicateInALineIsToldAfterTheCommit(t *testing.T) {
	t.Parallel()
	b := newBatched(newFixture(t), &oncemill.Inbox{})
	l := newLine(b, 1, 2)
	must(t, b.fixture.consumer().Once(within(t), l.name(1), effect("other")))
	l.add(within(t), 0, nil)
	l.add(within(t), 1, nil)
	duplicate := b.ends[1]
	b.add(within(t), "last", oncemill.ClaimOptions{}, func(context.Context, oncemill.Tx) error {
		time.Sleep(50 * time.Millisecond)
		if len(duplicate) > 0 {
			t.Error("it was told before")
		}
		return nil
	})
	must(t, errors.Join(b.run()...))
	l.order(0)
}
