package outbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"sync"
	"time"

	"github.com/oncemill/oncemill/schema"
)

const (
	// notifyGap is the least time between two NOTIFYs of one Publisher. A NOTIFY
	// takes a lock that all committing transactions of the cluster share.
	notifyGap = 10 * time.Millisecond

	// notifyTimeout bounds one NOTIFY, including the wait for a connection.
	notifyTimeout = 5 * time.Second
)

// Channel returns the name of the Postgres channel that relays of a schema
// listen on. "" means the schema "oncemill", whose channel is
// "oncemill_outbox". Programs that insert rows by SQL may NOTIFY it; best
// outside of their transactions, since a NOTIFY makes commits wait for one
// another.
func Channel(schemaName string) string {
	if schemaName == "" {
		schemaName = schema.Default
	}
	const suffix = "_outbox"
	if name := schemaName + suffix; len(name) <= 63 { // a longer identifier would be cut
		return name
	}
	sum := sha256.Sum256([]byte(schemaName))
	return "oncemill:" + hex.EncodeToString(sum[:16]) + suffix
}

// notify sends one NOTIFY. It says so once when it begins to fail.
func (p *Publisher) notify() {
	ctx, cancel := context.WithTimeout(context.Background(), notifyTimeout)
	defer cancel()
	_, err := p.Notify.ExecContext(ctx, `NOTIFY `+schema.Quote(Channel(p.Schema)))
	if err != nil && err.Error() == "sql: database is closed" {
		return // the program is shutting down
	}
	if p.bell.failed(err != nil) && err != nil {
		orDefault(p.Logger).Warn("outbox: cannot wake relays, they will poll", "error", err)
	}
}

func orDefault(logger *slog.Logger) *slog.Logger {
	if logger == nil {
		return slog.Default()
	}
	return logger
}

// A bell turns many rings into few calls: the first ring calls at once, those
// within the next notifyGap share one call at its end. Its goroutine ends when
// there is nothing more to do.
type bell struct {
	mu      sync.Mutex
	ringing bool // a goroutine is at work
	again   bool // somebody rang since it last began a call
	failing bool // the last call failed
}

func (b *bell) ring(call func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.again = true
	if !b.ringing {
		b.ringing = true
		go b.run(call)
	}
}

func (b *bell) run(call func()) {
	for b.next() {
		call()
		time.Sleep(notifyGap)
	}
}

// next reports whether somebody rang since the last call began. If not, the
// next ring starts a new goroutine.
func (b *bell) next() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	again := b.again
	b.again = false
	b.ringing = again
	return again
}

// failed records how a call went and reports whether that changed.
func (b *bell) failed(now bool) (changed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	changed = b.failing != now
	b.failing = now
	return changed
}
