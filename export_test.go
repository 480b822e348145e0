package oncemill

import "time"

// For tests of what cannot be seen from the outside.
var (
	ControlsTransaction = controlsTransaction
	StoredKey           = storedKey
)

// Waiting returns how many calls of Once wait for a batch.
func Waiting(in *Inbox) int {
	in.lane.mu.Lock()
	defer in.lane.mu.Unlock()
	return len(in.lane.queue) + len(in.lane.lines)
}

// Queued returns how many claims and settlements wait for a shared statement.
func Queued(in *Inbox) int {
	in.groups.mu.Lock()
	defer in.groups.mu.Unlock()
	return len(in.groups.waiting)
}

// PurgePause is how long a purge waits after a full batch, which took a while, has gone
// through a span of the claims' time, and is behind.
func PurgePause(took, span, behind, keep time.Duration) time.Duration {
	b := swept{rows: purgeBatch, full: true, took: took, span: span, behind: behind}
	return b.pause(keep)
}

// PurgeWaits are the times between rounds of a purge that find so many claims each second.
func PurgeWaits(rate, rounds int) (waits []time.Duration) {
	var p pace
	now := time.Now()
	for range rounds {
		p.endRound(now, int64(p.wait.Seconds()*float64(rate)))
		waits = append(waits, p.wait)
		now = now.Add(p.wait)
	}
	return waits
}

// Grow has the next batch be as large as it may be.
func Grow(in *Inbox) {
	in.lane.mu.Lock()
	defer in.lane.mu.Unlock()
	in.lane.size = in.Batch
}
