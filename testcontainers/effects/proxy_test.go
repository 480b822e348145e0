package effects_test

import (
	"sync/atomic"
	"testing"

	"github.com/oncemill/oncemill/testcontainers/internal/proxy"
)

// strikes are the COMMITs that a proxy between workers and Postgres loses.
type strikes struct {
	steps  []string // whose COMMITs are struck
	every  int64    // each so many of them
	most   int64    // so many in all
	answer bool     // the COMMIT arrives, and its answer is lost; else it is lost itself
	seen   atomic.Int64
	struck atomic.Int64
}

// through puts a proxy between the site's workers and its Postgres.
func (s *site) through(t *testing.T, struck *strikes) {
	t.Helper()
	_, s.postgres = proxy.Through(t, s.postgres, struck.watch)
}

// watch watches one connection.
func (s *strikes) watch() proxy.Watch {
	var w watch
	return func(sent []byte) proxy.Loss {
		switch {
		case !s.strike(w.commits(sent)):
			return proxy.Nothing
		case s.answer:
			return proxy.TheAnswer
		}
		return proxy.TheRequest
	}
}

// strike decides whether the COMMIT of a step is one that is lost.
func (s *strikes) strike(step string) bool {
	for _, struck := range s.steps {
		if step == struck && s.seen.Add(1)%s.every == 0 && s.struck.Add(1) <= s.most {
			return true
		}
	}
	return false
}

// lost returns how many COMMITs it has struck.
func (s *strikes) lost() int64 { return min(s.struck.Load(), s.most) }
