package delivery

import "sync"

// A Registry holds the subscriptions of a Subscriber that are under way. The zero
// value is ready.
type Registry struct {
	mu     sync.Mutex
	closed bool
	subs   map[*registered]struct{}
}

// registered is one subscription.
type registered struct {
	stop     chan struct{} // closed to end it
	stopOnce sync.Once
	done     chan struct{} // closed when it has ended
}

// Go runs a subscription in a goroutine of its own. Close ends it by closing stop.
// ok is false, and nothing runs, if the Registry is closed.
func (r *Registry) Go(stop chan struct{}, run func()) (ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	if r.subs == nil {
		r.subs = make(map[*registered]struct{})
	}
	sub := &registered{stop: stop, done: make(chan struct{})}
	r.subs[sub] = struct{}{}
	go func() {
		run()
		r.mu.Lock()
		delete(r.subs, sub)
		r.mu.Unlock()
		close(sub.done)
	}()
	return true
}

// Closed reports whether Close was called.
func (r *Registry) Closed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}

// Close ends all subscriptions and returns when they have ended.
func (r *Registry) Close() {
	r.mu.Lock()
	r.closed = true
	subs := make([]*registered, 0, len(r.subs))
	for sub := range r.subs {
		subs = append(subs, sub)
	}
	r.mu.Unlock()
	for _, sub := range subs {
		sub.stopOnce.Do(func() { close(sub.stop) })
	}
	for _, sub := range subs {
		<-sub.done
	}
}
