package outbox

import (
	"errors"
	"log/slog"
	"time"

	"github.com/oncemill/oncemill/internal/dbcheck"
	"github.com/oncemill/oncemill/internal/grants"
)

// noRightsEvery is how often something is tried again that the relay's role has no rights
// for.
const noRightsEvery = time.Minute

// trouble is that of work beside a relay's rounds. It is logged once when it begins, and
// once when it is over.
type trouble struct {
	what, over string // what is logged

	failures int
	since    time.Time
	rights   bool // the last failure was for want of rights
}

// report logs how the work went, if that has changed.
func (t *trouble) report(logger *slog.Logger, err error) {
	switch {
	case err == nil && t.failures > 0:
		logger.Info(t.over, "after", time.Since(t.since).Round(time.Millisecond), "failed_rounds", t.failures)
		t.failures = 0
	case err != nil:
		if t.failures == 0 {
			t.since = time.Now()
			logger.Warn(t.what, "error", err)
		}
		t.failures++
		t.rights = lacksRights(err)
	}
}

// pause is how long to wait for the next round, given how long it is if all goes well.
func (t *trouble) pause(well time.Duration) time.Duration {
	switch {
	case t.failures == 0:
		return well
	case t.rights && t.failures > 3: // not only a session that has lost them
		return noRightsEvery
	}
	return backoff(minAway, maxAway, t.failures-1)
}

func lacksRights(err error) bool {
	var missing *grants.Error
	return errors.As(err, &missing) || dbcheck.SQLState(err) == "42501"
}
