package outbox

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"time"
)

const (
	// maxAside is how many topics or keys are left alone.
	maxAside = 1000

	// asideGrace is how long after they were to be tried again nothing more must have been
	// said of them.
	asideGrace = time.Second
)

// An aside is which rows a loop leaves alone for a while, since the broker did not take
// others like them: those of some topics or, of rows that are kept in order, those of some
// keys. They would come first in every batch, and where they are many nothing else would be
// fetched, though a broker may well be unavailable for some topics only, such as those of a
// stream without a leader.
type aside struct {
	names map[string]bool // topics, or keys
	until time.Time
	first int64 // the least id of them
	times int   // how often in a row
	err   error // what the broker said of the last of them
}

// put leaves rows like these alone. It reports whether it is worth while to look for
// others: not if these were left alone already, or if too many are.
func (a *aside) put(rows []Row, ordered bool, err error) (some bool) {
	a.err = err
	if len(a.names) == 0 {
		*a = aside{names: make(map[string]bool), until: time.Now().Add(backoff(minAway, maxAway, a.times)), first: rows[0].ID, times: a.times + 1, err: err}
	}
	for _, row := range rows {
		name := row.Topic
		if ordered {
			name = hashOf(row.OrderingKey)
		}
		a.first = min(a.first, row.ID)
		if !a.names[name] && len(a.names) < maxAside {
			a.names[name], some = true, true
		}
	}
	return some
}

// hashOf is the hash of an ordering key, in hexadecimal digits.
func hashOf(key []byte) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:])
}

// expire has all rows be tried again after a while, and returns the first of those that
// were left alone.
func (a *aside) expire(now time.Time) (first int64, yes bool) {
	if len(a.names) == 0 || now.Before(a.until) {
		return 0, false
	}
	a.names = nil
	return a.first, true
}

// wait returns how long it is until something changes, if it is not all over.
func (a *aside) wait(otherwise time.Duration) time.Duration {
	switch {
	case len(a.names) > 0:
		return time.Until(a.until)
	case a.err != nil:
		return time.Until(a.until.Add(asideGrace))
	}
	return otherwise
}

// why returns what the broker said of rows that are left alone, or were until just now:
// whether it takes them by now shows when they have been tried again.
func (a *aside) why() error {
	if len(a.names) == 0 && time.Now().After(a.until.Add(asideGrace)) {
		*a = aside{}
	}
	return a.err
}

// condition is, in SQL, that a row's topic is not left alone.
func (a *aside) condition() string {
	if len(a.names) == 0 {
		return "true"
	}
	quoted := make([]string, 0, len(a.names))
	for _, name := range slices.Sorted(maps.Keys(a.names)) {
		quoted = append(quoted, `'`+strings.ReplaceAll(name, `'`, `''`)+`'`)
	}
	return `topic <> ALL (ARRAY[` + strings.Join(quoted, ",") + `]::text[])`
}
