package outbox

import (
	"math"
	"time"
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
	floor int64         // the least id that is looked at between searches
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

// start returns the least id that a fetch looks at.
func (s *scan) start(now time.Time) int64 {
	if now.Before(s.due()) {
		return s.floor
	}
	return bottom
}

// advance moves the floor behind the rows of a fetch. more means that another
// fetch should follow at once.
func (s *scan) advance(f *fetched, from int64, begun, ended time.Time) (more bool) {
	if from == bottom {
		s.last = ended
		s.walk = max(0, ended.Sub(begun)-time.Duration(f.read())*rowTime)
	}
	s.busy = f.more
	s.owed = from != bottom && !f.more
	switch {
	case f.more:
		s.floor = f.last + 1
	case f.read() > 0:
		s.floor = max(s.floor, f.last+1)
	}
	return f.more || s.owed && !ended.Before(s.due())
}
