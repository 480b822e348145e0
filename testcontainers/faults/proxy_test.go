package faults_test

import (
	"bytes"
	"sync"

	"github.com/oncemill/oncemill/testcontainers/internal/proxy"
)

// every returns a proxy's watch that has the given loss on every n-th request
// that has a text in it, most times in all.
func every(n, most int, text string, what proxy.Loss) func() proxy.Watch {
	var mu sync.Mutex
	seen, lost := 0, 0
	lose := func(request []byte) proxy.Loss {
		mu.Lock()
		defer mu.Unlock()
		if lost == most || !bytes.Contains(bytes.ToUpper(request), []byte(text)) {
			return proxy.Nothing
		}
		if seen++; seen%n != 0 {
			return proxy.Nothing
		}
		lost++
		return what
	}
	return func() proxy.Watch { return lose } // one for all connections
}
