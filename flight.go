package oncemill

import (
	"context"
	"sync"
	"time"
)

// flights lets one delivery of a key at a time through in this process, so that
// the others wait here and not inside of Postgres, where each would hold a
// connection. The zero value is ready.
type flights struct {
	mu  sync.Mutex
	out map[flight]chan struct{} // closed when that delivery has ended
}

type flight struct{ consumer, key string }

// enter waits until no other delivery of f is under way, and then returns a
// function that ends this one. It gives up with ErrInFlight after wait, and with
// ctx's error when ctx ends.
func (fs *flights) enter(ctx context.Context, f flight, wait time.Duration) (leave func(), err error) {
	var timeout <-chan time.Time
	for {
		leave, other := fs.take(f)
		if leave != nil {
			return leave, nil
		}
		if timeout == nil {
			timer := time.NewTimer(wait)
			defer timer.Stop()
			timeout = timer.C
		}
		select {
		case <-other:
		case <-timeout:
			return nil, ErrInFlight
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// tryEnter is enter without waiting.
func (fs *flights) tryEnter(f flight) (leave func(), ok bool) {
	leave, _ = fs.take(f)
	return leave, leave != nil
}

// take returns what ends the delivery, or else the other one's end.
func (fs *flights) take(f flight) (leave func(), other chan struct{}) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if other, busy := fs.out[f]; busy {
		return nil, other
	}
	done := make(chan struct{})
	if fs.out == nil {
		fs.out = make(map[flight]chan struct{})
	}
	fs.out[f] = done
	return func() { fs.leave(f, done) }, nil
}

func (fs *flights) leave(f flight, done chan struct{}) {
	fs.mu.Lock()
	delete(fs.out, f)
	fs.mu.Unlock()
	close(done)
}
