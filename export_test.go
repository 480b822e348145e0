package oncemill

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
