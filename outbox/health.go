package outbox

import (
	"log/slog"
	"sync"
	"time"
)

// A health is how the last rounds of a relay's loops went.
type health struct {
	mu        sync.Mutex
	last      map[string]error // by loop; those that have finished a round
	awaySince time.Time        // when the first of them failed
	failures  int              // rounds that have failed since
}

// begin forgets the loops that were.
func (h *health) begin() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last = make(map[string]error)
}

// ready returns nil if a loop has finished a round, and if the last round of each went well.
func (h *health) ready() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.failed(); err != nil {
		return err
	}
	if len(h.last) == 0 {
		return errNoRound
	}
	return nil
}

func (h *health) failed() error {
	for _, err := range h.last {
		if err != nil {
			return err
		}
	}
	return nil
}

// record notes how a round went, and logs what it changes. Who sees the outcome may rely
// on the log.
func (h *health) record(loop string, err error, logger *slog.Logger) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.failed()
	was := h.last[loop]
	h.last[loop] = err
	if err != nil {
		h.failures++
	}
	switch {
	case before == nil && err != nil:
		h.awaySince, h.failures = time.Now(), 1
		logger.Warn("outbox relay: cannot go on, will try again until it can", "error", err)
	case was != nil && h.failed() == nil:
		logger.Info("outbox relay: goes on", "after", time.Since(h.awaySince).Round(time.Millisecond), "failed_rounds", h.failures)
	}
}
