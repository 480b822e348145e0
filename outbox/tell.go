package outbox

import "time"

// tell logs and observes a batch that is committed.
func (l *loop) tell(f *fetched, v *verdicts, took time.Duration) {
	logger := l.logger()
	result := BatchResult{Published: len(v.published), Unavailable: len(v.untouched), Waiting: v.waiting, Oldest: f.oldest, Took: took}
	var first *failure // of those deferred
	for i, failed := range v.failed {
		if failed.park {
			if result.Parked++; result.Parked <= mostToldParked {
				logger.Error("outbox relay: parked a message, it stays in the outbox until somebody deals with it, and those behind it with its ordering key wait",
					"id", failed.row.ID, "topic", failed.row.Topic, "uuid", failed.row.UUID, "error", failed.err,
					"remedy", "oncemill outbox list")
			}
			continue
		}
		result.Deferred++
		if first == nil {
			first = &v.failed[i]
		}
		if due := time.Now().Add(failed.pause); due.After(l.due) {
			l.due = due
		}
	}
	if more := result.Parked - mostToldParked; more > 0 {
		logger.Error("outbox relay: parked further messages", "messages", more, "remedy", "oncemill outbox list --summary")
	}
	l.tellDeferred(v, first, result.Deferred)
	if l.Observer != nil && l.Observer.Batch != nil {
		l.observing.Lock()
		defer l.observing.Unlock()
		l.Observer.Batch(result)
	}
}

// tellDeferred logs that rows could not be published, now and then, and once that
// they were all dealt with. Other rows that go out meanwhile are no sign of that.
func (l *loop) tellDeferred(v *verdicts, first *failure, deferred int) {
	logger, now := l.logger(), time.Now()
	were := len(l.deferred)
	for _, id := range v.published {
		delete(l.deferred, id)
	}
	for _, failed := range v.failed {
		delete(l.deferred, failed.row.ID)
		if !failed.park && len(l.deferred) < maxDeferred {
			l.deferred[failed.row.ID] = now.Add(failed.pause)
		}
	}
	for id, due := range l.deferred {
		if now.Sub(due) > forgetDeferred { // another relay has seen to it, or an operator
			delete(l.deferred, id)
		}
	}
	switch {
	case first != nil && (were == 0 || now.Sub(l.warned) >= warnEvery):
		l.warned = now
		logger.Warn("outbox relay: messages could not be published, will try each again later", "messages", deferred, "waiting", len(l.deferred),
			"id", first.row.ID, "topic", first.row.Topic, "uuid", first.row.UUID, "error", first.err)
	case were > 0 && len(l.deferred) == 0:
		logger.Info("outbox relay: messages that could not be published are dealt with")
	}
}

const (
	// mostToldParked is how many parked rows of a batch are named in the log.
	mostToldParked = 5

	// warnEvery is how often it is said that there are deferred rows.
	warnEvery = time.Minute

	// maxDeferred rows are remembered at most, and forgetDeferred after they were due.
	maxDeferred    = 10_000
	forgetDeferred = time.Minute
)
