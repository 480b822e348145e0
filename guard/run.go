package guard

import (
	"context"
	_ "embed"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// How often Run notes which leases are over, and how far back it looks beyond what it has
// seen: a lease is noted late where its claim was committed late.
const (
	noteEvery = 2 * time.Second
	noteAgain = time.Minute

	// noteAllRounds is after how many rounds it looks at all of them.
	noteAllRounds = 300
)

// Run does what is to be done beside requests until ctx ends, and then returns nil: it
// notes which claims have come to be in doubt, forgets claims and events that are older
// than the Inbox keeps them, and takes changes of the tenants' file.
func (h *Handler) Run(ctx context.Context) error {
	h.start.Do(h.setUp)
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 3)
	start := func(run func(context.Context) error) {
		running.Go(func() {
			if err := run(ctx); err != nil {
				failed <- err
			}
		})
	}
	for _, consumer := range h.consumers() { // what the purge looks at
		h.Inbox.Consumer(consumer)
	}
	start(h.Inbox.Run)
	start(h.noteDoubts)
	if h.Tenants != nil {
		start(h.Tenants.Run)
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// noteDoubts has events tell of a lease that is over soon after it is.
func (h *Handler) noteDoubts(ctx context.Context) error {
	ticker := time.NewTicker(noteEvery)
	defer ticker.Stop()
	since := make(map[string]time.Time) // by consumer; absent: everything
	failing := false
	for round := 0; ; round++ {
		if round%noteAllRounds == 0 {
			clear(since) // their clock may not be ours
		}
		var failure error
		for _, consumer := range h.consumers() {
			now := time.Now()
			if _, err := h.Inbox.Consumer(consumer).NoteDoubts(ctx, since[consumer]); err != nil {
				failure = err
				break
			}
			since[consumer] = now.Add(-noteAgain)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case failure != nil && !failing:
			h.Logger.ErrorContext(ctx, "guard: noting what is in doubt failed, will try again", "error", failure)
		case failure == nil && failing:
			h.Logger.InfoContext(ctx, "guard: noting what is in doubt works again")
		}
		failing = failure != nil
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// health answers GET /health: the process is there.
func (c *call) health(ids) error {
	c.write(http.StatusOK, struct {
		Status string `json:"status"`
	}{"ok"})
	return nil
}

// readiness remembers for a moment whether the database works, so that asking often costs
// little.
type readiness struct {
	mu    sync.Mutex
	until time.Time
	err   error
}

const readyFor = time.Second

// readyz answers GET /readyz: claims can be made.
func (c *call) readyz(ids) error {
	r := &c.h.ready
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Now().After(r.until) {
		// The next one who asks shall not be told that this one has not waited.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(c.r.Context()), c.h.Timeout)
		defer cancel()
		r.err = errors.Join(c.h.Inbox.Check(ctx), c.h.secret.load(ctx, c.h.Inbox))
		r.until = time.Now().Add(readyFor)
	}
	if r.err != nil {
		return unavailable(r.err)
	}
	return c.health(nil)
}

// timeout is the request's context with the Handler's timeout.
func (c *call) timeout() (context.Context, context.CancelFunc) {
	return context.WithTimeout(c.r.Context(), c.h.Timeout)
}

// openAPIText describes all of this. A test compares it with what the Handler does.
//
//go:embed openapi.json
var openAPIText []byte

// openAPI answers GET /openapi.json.
func (c *call) openAPI(ids) error {
	c.w.Header().Set("Content-Length", strconv.Itoa(len(openAPIText)))
	_, _ = c.w.Write(openAPIText)
	return nil
}
