package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// A Sink that was away is left alone for awayShare times as long as it took to
	// find out, at most longestRest.
	awayShare   = 4
	longestRest = 10 * time.Second

	// It is then tried with probeRows rows, for a part of a batch's time.
	probeRows  = 20
	probeShare = 5
)

// A health is what a Router knows about a Sink.
type health struct {
	away  error     // why it took nothing the last time, nil if it did
	until time.Time // when it is tried again
	stuck int       // calls that have not returned though nobody waits any more
}

// of returns a Sink's health. The caller holds mu.
func (r *Router) of(name string) *health {
	h := r.health[name]
	if h == nil {
		if r.health == nil {
			r.health = make(map[string]*health)
		}
		h = new(health)
		r.health[name] = h
	}
	return h
}

// admit says how many of n rows a Sink gets, which part of the batch's time, and
// what is to be said of the others.
func (r *Router) admit(name string, n int) (rows int, share int, why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.of(name)
	switch {
	case h.stuck > 0:
		return 0, 0, errNotReturned(name)
	case h.away == nil:
		return n, 1, nil
	}
	why = fmt.Errorf("%w: sink %q was away, waits to be tried again: %w", ErrUnavailable, name, h.away)
	if time.Now().Before(h.until) {
		return 0, 0, why
	}
	return min(n, probeRows), probeShare, why
}

// note remembers how a Sink did with the first n rows of a lot, and ends it.
func (r *Router) note(l *lot, n int, took time.Duration) {
	away := awayWith(l.errs[:n])
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.of(l.name)
	h.away = away
	h.until = time.Now().Add(min(awayShare*took, longestRest))
	if l.left {
		h.stuck--
	}
	close(l.returned)
}

// awayWith returns why a Sink took nothing, or nil if that was not because it is
// away: an answer about a row is one, too.
func awayWith(errs []error) error {
	for _, err := range errs {
		if err == nil || errors.Is(err, ErrRefused) || !errors.Is(err, ErrUnavailable) {
			return nil
		}
	}
	return errs[0]
}

// blameAway makes ErrUnavailable of rows for which there was no time, where their
// Sink acknowledged none, or had less time than the batch. The Relay, which sees
// the rows of all Sinks, would blame the rows.
func blameAway(name string, errs []error, short bool) {
	if !short && slices.Contains(errs, nil) {
		return
	}
	for i, err := range errs {
		late := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
		if late && !errors.Is(err, ErrRefused) && !errors.Is(err, ErrUnavailable) {
			errs[i] = fmt.Errorf("%w: sink %q: %w", ErrUnavailable, name, err)
		}
	}
}

// leave stops waiting for a lot. It returns true if the lot has returned after all.
func (r *Router) leave(l *lot) (returned bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-l.returned:
		return true
	default:
	}
	if !l.left {
		l.left = true
		r.of(l.name).stuck++
	}
	return false
}
