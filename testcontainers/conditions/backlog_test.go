package conditions_test

import (
	"os"
	"strconv"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"
)

// rowsVariable is the environment variable with how many rows a large backlog has,
// where a million would take too long.
const rowsVariable = "ONCEMILL_TEST_BACKLOG"

func backlog(t *testing.T) int {
	t.Helper()
	text := os.Getenv(rowsVariable)
	if text == "" {
		return 1_000_000
	}
	n, err := strconv.Atoi(text)
	must(t, err)
	t.Logf("with %d rows only, see %s", n, rowsVariable)
	return n
}

// A backlog is read batch by batch: what the relay needs does not grow with it.
func TestAMillionRowsOfBacklogAtBoundedMemory(t *testing.T) {
	const keys, most = 5000, 100 * mib
	total := backlog(t)
	s := newSite(t, func(cfg *natsjs.StreamConfig) { cfg.Storage = natsjs.MemoryStorage })
	begun := time.Now()
	s.load("a", 0, total, keys)
	t.Logf("written after %v", time.Since(begun).Round(time.Millisecond))
	begun = time.Now()
	d := s.relay()
	s.awaitEmpty()
	u, _ := d.usage()
	t.Logf("relayed after %v, %v of processor time", time.Since(begun).Round(time.Millisecond), u.cpu)
	d.wantMemory(most)
	d.stop()
	begun = time.Now()
	if n := s.arrived(total, keys); n > 0 {
		t.Errorf("%d messages came twice", n)
	}
	t.Logf("read after %v", time.Since(begun).Round(time.Millisecond))
}
