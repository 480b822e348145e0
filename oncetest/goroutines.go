package oncetest

import (
	"bytes"
	"runtime"
	"time"
)

// For this long a goroutine that the handler has left may take to touch the transaction.
const lingering = 500 * time.Millisecond

// waitForGoroutines waits until the goroutines have ended that the calling one has started,
// or until touched, or for so long as none is likely to come to the transaction any more.
func waitForGoroutines(touched func() bool) {
	me := bytes.Fields(stack(false))[1]
	for end := time.Now().Add(lingering); time.Now().Before(end) && !touched() && hasChildren(me); {
		time.Sleep(time.Millisecond)
	}
}

// hasChildren reports whether goroutines are there that were started by a given one, but for
// those that drivers and the standard library start to watch over contexts and connections.
func hasChildren(id []byte) bool {
	by := append([]byte(" in goroutine "), id...)
	for block := range bytes.SplitSeq(stack(true), []byte("\n\n")) {
		_, created, found := bytes.Cut(block, []byte("\ncreated by "))
		creator, _, _ := bytes.Cut(created, []byte("\n"))
		if found && bytes.HasSuffix(creator, by) && !isLibrary(creator) {
			return true
		}
	}
	return false
}

func isLibrary(creator []byte) bool {
	for _, of := range []string{"database/sql.", "context.", "net/http.", "net.", "os/exec.", "github.com/lib/pq", "github.com/jackc/", "github.com/oncemill/oncemill."} {
		if bytes.HasPrefix(creator, []byte(of)) {
			return true
		}
	}
	return false
}

func stack(all bool) []byte {
	for size := 64 << 10; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, all); n < size {
			return buf[:n]
		}
	}
}
