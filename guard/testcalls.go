package guard

import (
	"net"
	"sync"
	"time"
)

// testCalls counts the calls of /claim/test by who makes them, in this process. The zero
// value is ready.
type testCalls struct {
	mu    sync.Mutex
	since time.Time // all counts begin anew every testWindow
	made  map[string]int
}

const (
	testWindow = time.Hour

	// mostCallers bounds what is remembered; whoever comes after them shares one count.
	mostCallers = 10000
)

// take counts one call. remaining is how many are left; below 0: there was none, and there
// will be some again after a while.
func (t *testCalls) take(caller string, most int, now time.Time) (remaining int, again time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.since) >= testWindow {
		t.since, t.made = now, make(map[string]int)
	}
	if _, known := t.made[caller]; !known && len(t.made) >= mostCallers {
		caller = ""
	}
	if t.made[caller] >= most {
		return -1, testWindow - now.Sub(t.since)
	}
	t.made[caller]++
	return most - t.made[caller], 0
}

// caller is whose calls are counted together.
func (c *call) caller() string {
	if c.known {
		return c.tenant
	}
	host, _, err := net.SplitHostPort(c.r.RemoteAddr)
	if err != nil {
		return c.r.RemoteAddr
	}
	return host
}
