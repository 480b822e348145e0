package groupcommit_test

import (
	"database/sql"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/actor"
	"github.com/oncemill/oncemill/testcontainers/internal/lot"
)

// A site is a database, and the processes that handle messages on it.
type site struct {
	t        *testing.T
	db       *sql.DB
	url      string
	seed     uint64
	messages int
	batch    int
	workers  []*actor.Process
}

func newSite(t *testing.T, batch, messages int) *site {
	t.Helper()
	database := testcontainers.Postgres(t)
	// Victims of deadlocks are chosen after this time, not after Postgres's second.
	s := &site{t: t, db: database.DB, url: database.URL + "&deadlock_timeout=30ms", seed: lot.Seed(t), messages: lot.Messages(t, messages), batch: batch}
	_, err := s.db.Exec(tablesSQL)
	must(t, err)
	_, err = s.db.Exec(`INSERT INTO hot SELECT generate_series(0, $1::integer - 1)`, counters)
	must(t, err)
	return s
}

// repeated tells whether the draws are those of another run.
func repeated() bool {
	return os.Getenv(lot.SeedVariable) != "" || os.Getenv(lot.MessagesVariable) != ""
}

// worker returns the role of one of the two workers that have messages of their own.
func (s *site) worker(n int) role {
	return role{
		Name: string(rune('a' + n)), Postgres: s.url, Seed: s.seed, Messages: s.messages, Worker: n,
		InFlight: []int{64, 160}[n], Batch: s.batch, BatchTime: 100 * time.Millisecond, IdleTimeout: 10 * time.Second,
		Failpoints: true,
	}
}

// heir returns the role of a worker that delivers what another one has not had
// acknowledged.
func (s *site) heir(of int) role {
	r := s.worker(of)
	acked := s.acked()
	r.Name, r.Only = "heir", []int{}
	for _, d := range deliveries(s.seed, s.messages, of) {
		if !acked[keyOf(s.seed, d.number)] {
			r.Only = append(r.Only, d.number)
		}
	}
	return r
}

func (s *site) start(r role) *actor.Process {
	s.t.Helper()
	p := actor.Start(s.t, r.Name, roleVariable, r)
	s.workers = append(s.workers, p)
	return p
}

// acked returns the messages that were acknowledged, as far as is known.
func (s *site) acked() map[string]bool {
	acked := make(map[string]bool)
	for _, p := range s.workers {
		lines, _ := p.Said("acked")
		for _, line := range lines {
			acked[strings.Fields(line)[1]] = true
		}
	}
	return acked
}

// finish waits until workers have had acknowledged all that they deliver, and stops
// them.
func (s *site) finish(workers ...*actor.Process) {
	s.t.Helper()
	deadline := time.After(limit)
	for _, p := range workers {
		for {
			lines, more := p.Said("finished")
			if len(lines) > 0 {
				break
			}
			select {
			case <-more:
			case <-deadline:
				s.stuck()
			}
		}
	}
	for _, p := range workers {
		p.Stop()
	}
}

// stuck fails the test, and tells of some of the messages that do not end.
func (s *site) stuck() {
	s.t.Helper()
	acked, told := s.acked(), 0
	for number := range s.messages {
		key := keyOf(s.seed, number)
		if !acked[key] && told < 5 {
			told++
			s.t.Logf("%s is not acknowledged:\n%s", key, s.history(key))
		}
	}
	s.t.Fatalf("%d of %d messages were acknowledged within %v", len(acked), s.messages, limit)
}

// audit has the checker look at everything.
func (s *site) audit(from querier) (found []anomaly) {
	s.t.Helper()
	l := read(s.t, from)
	for number := range s.messages {
		l.account(keyOf(s.seed, number)).expected = true
	}
	for key := range s.acked() {
		l.account(key).acked = true
	}
	found = l.check()
	for _, p := range s.workers {
		amiss, _ := p.Said("amiss")
		for _, line := range amiss {
			words := strings.SplitN(line, " ", 3)
			found = append(found, anomaly{words[1], words[2]})
		}
		for range p.Times("deadlock " + string(toClaim)) {
			found = append(found, anomaly{"", "two claims have deadlocked: their keys are not in order"})
		}
	}
	return found
}

// balance wants the checker to find nothing.
func (s *site) balance() {
	s.t.Helper()
	found := s.audit(s.db)
	for _, a := range found[:min(len(found), 5)] {
		s.t.Errorf("anomaly: %s", s.describe(a))
	}
	if len(found) > 5 {
		s.t.Errorf("%d anomalies in all", len(found))
	}
	s.t.Logf("%s", s.summary())
}

func (s *site) describe(a anomaly) string {
	if a.key == "" {
		return a.what
	}
	return fmt.Sprintf("%s: %s\n%s", a.key, a.what, s.history(a.key))
}

// history returns all that was said about a message, in the order of time.
func (s *site) history(key string) string {
	var all []string
	for _, p := range s.workers {
		lines, _ := p.Said(key)
		all = append(all, lines...)
	}
	slices.Sort(all) // key and time come first
	return strings.Join(all, "\n")
}

// summary tells how much of what may happen has happened.
func (s *site) summary() string {
	var largest []string
	for _, p := range s.workers {
		if lines, _ := p.Said("largest"); len(lines) > 0 {
			largest = append(largest, strings.TrimPrefix(lines[len(lines)-1], "largest "))
		}
	}
	text := "largest transactions: " + strings.Join(largest, ", ") + " effects; losses:"
	for _, k := range losable {
		text += fmt.Sprintf(" %s %d", k, s.times("failpoint", k))
	}
	stale := 0
	for _, p := range s.workers {
		stale += p.Times("stale")
	}
	return text + fmt.Sprintf("; deadlocks: %d; uses of a stale transaction: %d", s.times("deadlock", toRaise), stale)
}

// times returns how often the workers have said a word of a kind of statement.
func (s *site) times(word string, of kind) (n int) {
	for _, p := range s.workers {
		n += p.Times(word + " " + string(of))
	}
	return n
}
