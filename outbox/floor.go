package outbox

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"time"

	"github.com/oncemill/oncemill/schema"
)

const (
	// bottom is the floor of a fetch from the beginning.
	bottom = math.MinInt64

	// rescanEvery is how often a relay with much to do looks for rows that it has
	// passed by.
	rescanEvery = time.Second

	// scanShare bounds the time that goes into stepping over rows that are not
	// there any more: one part of so many.
	scanShare = 20

	// rowTime is how long it takes at most to fetch a row.
	rowTime = 20 * time.Microsecond
)

// A scan is the search for rows below the floor: such that were committed late,
// deferred or held by another relay. Until vacuum has removed the rows that were
// published, each search has to step over them, and a long transaction anywhere
// keeps vacuum from it; so it begins the later, the longer the last one took.
type scan struct {
	schema string
	topics string // a condition; "" means all
	keyed  bool   // rows with an ordering key come from here as well

	// highest is the largest id that any loop has seen, and passed what it was when the
	// last fetch began.
	highest *highest
	passed  int64

	floor int64         // the least id that is looked at between searches
	from  int64         // where the last fetch has begun
	last  time.Time     // when the last search ended
	walk  time.Duration // how long it took to find nothing
	busy  bool          // the last fetch left rows behind
	owed  bool          // there was no search since rows were last found to be gone
}

// due returns when the next search is.
func (s *scan) due() time.Time {
	pause := scanShare * s.walk
	if s.busy {
		pause = max(pause, rescanEvery)
	}
	return s.last.Add(pause)
}

func (s *scan) rows(_ context.Context, _ *sql.Tx, n int, aside *aside) (from string, err error) {
	s.passed = s.highest.get()
	if s.from = bottom; time.Now().Before(s.due()) {
		s.from = s.floor
	}
	which := ""
	if !s.keyed {
		which = "ordering_key IS NULL AND "
	}
	if s.topics != "" {
		which += s.topics + " AND "
	}
	return fmt.Sprintf(`
			FROM %s.outbox
			WHERE %sid >= '%d'::bigint AND parked_at IS NULL AND (not_before IS NULL OR not_before <= now()) AND %s
			ORDER BY id
			LIMIT %d
			FOR UPDATE SKIP LOCKED`, schema.Quote(s.schema), which, s.from, aside.condition(), n), nil
}

// advance moves the floor behind the rows of a fetch and, if there are no more, behind
// those of other loops, which would be stepped over otherwise.
func (s *scan) advance(_ context.Context, _ *sql.Tx, f *fetched, begun, ended time.Time) (more bool, err error) {
	if s.from == bottom {
		s.last = ended
		s.walk = max(0, ended.Sub(begun)-time.Duration(f.read())*rowTime)
	}
	s.busy = f.more
	s.owed = s.from != bottom && !f.more
	switch {
	case f.more:
		s.floor = f.last + 1
	case f.read() > 0:
		s.floor = max(s.floor, f.last+1, s.passed)
	default:
		s.floor = max(s.floor, s.passed)
	}
	if f.read() > 0 {
		s.highest.see(f.last)
	}
	return f.more || s.owed && !ended.Before(s.due()), nil
}

func (s *scan) reset() { s.floor = bottom }

func (s *scan) putBack(first int64) { s.floor = min(s.floor, first) }

func (s *scan) pipelined(bool) {}

func (s *scan) pause(poll time.Duration) time.Duration {
	if s.owed {
		return min(poll, time.Until(s.due()))
	}
	return poll
}

func (s *scan) inOrder() bool { return false }
