package outbox

import (
	"slices"
	"sync/atomic"
	"time"
)

// A horizon is the least id that an open transaction may still commit. Ids are given in
// their order but committed in another, and a floor that passes by one would have its row
// overtaken. Snapshots do not tell: a transaction that only reads, or works elsewhere,
// would hold the horizon back for as long as it is open.
type horizon struct {
	safe    int64 // all rows below are committed, or never will be
	seen    int64 // the largest id that was seen
	next    int64 // what becomes safe
	waiting []writer
	since   time.Time // when those were found
}

func (h *horizon) see(id int64) { h.seen = max(h.seen, id) }

// look draws conclusions from which transactions write now. Every id up to the largest
// that was seen was taken by then, under a lock: if its transaction is not among those
// that write now, it has ended.
func (h *horizon) look(writers []writer, now time.Time) {
	if h.seen == bottom || slices.ContainsFunc(h.waiting, func(w writer) bool { return w.in(writers) }) {
		return
	}
	if h.waiting != nil {
		h.safe = max(h.safe, h.next)
	}
	h.next, h.waiting, h.since = h.seen+1, writers, now
	if len(writers) == 0 {
		h.safe, h.waiting = max(h.safe, h.next), nil
	}
}

// late returns those that were found long ago and write still.
func (h *horizon) late(writers []writer, now time.Time) (late []writer) {
	if now.Sub(h.since) < longAfter {
		return nil
	}
	for _, w := range writers {
		if w.id != 0 && w.in(h.waiting) {
			late = append(late, w)
		}
	}
	return late
}

// A writer is a transaction.
type writer struct {
	virtual string // its virtual id
	id      int64  // its id, of 32 bits; 0 if it has none yet
}

func (w writer) in(writers []writer) bool {
	return slices.ContainsFunc(writers, func(other writer) bool { return other.virtual == w.virtual })
}

// A highest is the largest id that was seen by any of a relay's loops.
type highest struct{ id atomic.Int64 }

func (h *highest) get() int64 { return h.id.Load() }

func (h *highest) see(id int64) {
	for {
		old := h.id.Load()
		if id <= old || h.id.CompareAndSwap(old, id) {
			return
		}
	}
}
