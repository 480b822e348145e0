package outbox

import "time"

// An outage is a time in which rounds for a Sink failed.
type outage struct {
	since  time.Time
	rounds int // that have failed
}

// begin forgets the loops that were, and notes those that are about to run.
func (r *Relay) begin(loops []*loop) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last, r.away = make(map[*loop]error), make(map[string]*outage)
	for _, l := range loops {
		r.last[l] = errNoRound
	}
}

// record notes how a loop's round went, and logs when the loops of its Sink begin to fail
// and when all of them go on. Who sees the outcome may rely on the log.
func (r *Relay) record(l *loop, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last[l] = err
	logger := l.logger()
	away := r.away[l.to.name]
	switch {
	case err != nil && away == nil:
		r.away[l.to.name] = &outage{since: time.Now(), rounds: 1}
		logger.Warn("outbox relay: cannot go on, will try again until it can", "error", err)
	case err != nil:
		away.rounds++
	case away != nil && r.goesOn(l.to.name):
		delete(r.away, l.to.name)
		logger.Info("outbox relay: goes on", "after", time.Since(away.since).Round(time.Millisecond), "failed_rounds", away.rounds)
	}
}

// goesOn reports whether no loop of a Sink has failed last.
func (r *Relay) goesOn(name string) bool {
	for l, err := range r.last {
		if l.to.name == name && err != nil && err != errNoRound {
			return false
		}
	}
	return true
}
