package groupcommit_test

import (
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/lib/pq"
)

// An anomaly is what the checker has found. key is "" where it concerns no message.
type anomaly struct{ key, what string }

// A mark identifies a run of the handler.
type mark struct {
	worker string
	run    int
}

// An account is what the tables and the processes say about one message.
type account struct {
	expected bool     // it was to be delivered
	acked    bool     // some process has seen that
	claims   []string // outcomes
	effects  []written
	sent     []sent
}

type written struct {
	mark
	messages int
	tenant   string // "": it was written under nobody's setting
}

type sent struct {
	mark
	number int
}

// A ledger is all that is in the tables.
type ledger struct {
	accounts map[string]*account
	raised   map[int]int // by the effects
	counted  map[int]int // by the counters
}

func (l *ledger) account(key string) *account {
	if l.accounts[key] == nil {
		l.accounts[key] = new(account)
	}
	return l.accounts[key]
}

// A querier is a database or a transaction.
type querier interface {
	Query(query string, args ...any) (*sql.Rows, error)
}

// read reads the tables.
func read(t *testing.T, db querier) *ledger {
	t.Helper()
	l := &ledger{make(map[string]*account), make(map[int]int), make(map[int]int)}
	each(t, db, `SELECT key, outcome FROM oncemill.claims WHERE consumer IN ('`+consumer+`', '`+loners+`')`, func(rows *sql.Rows) error {
		var key, outcome string
		err := rows.Scan(&key, &outcome)
		l.account(key).claims = append(l.account(key).claims, outcome)
		return err
	})
	each(t, db, `SELECT key, worker, run, messages, hot, tenant FROM effects`, func(rows *sql.Rows) error {
		var key string
		var e written
		var hot pq.Int64Array
		err := rows.Scan(&key, &e.worker, &e.run, &e.messages, &hot, &e.tenant)
		l.account(key).effects = append(l.account(key).effects, e)
		for _, id := range hot {
			l.raised[int(id)]++
		}
		return err
	})
	each(t, db, `SELECT metadata->>'key', metadata->>'worker', (metadata->>'run')::integer, (metadata->>'number')::integer FROM oncemill.outbox`, func(rows *sql.Rows) error {
		var key string
		var m sent
		err := rows.Scan(&key, &m.worker, &m.run, &m.number)
		l.account(key).sent = append(l.account(key).sent, m)
		return err
	})
	each(t, db, `SELECT id, n FROM hot`, func(rows *sql.Rows) error {
		var id, n int
		err := rows.Scan(&id, &n)
		l.counted[id] = n
		return err
	})
	return l
}

func each(t *testing.T, db querier, query string, scan func(*sql.Rows) error) {
	t.Helper()
	rows, err := db.Query(query)
	must(t, err)
	defer rows.Close()
	for rows.Next() {
		must(t, scan(rows))
	}
	must(t, rows.Err())
}

// check compares what is in the ledger, and returns what does not agree.
func (l *ledger) check() (found []anomaly) {
	for _, key := range slices.Sorted(maps.Keys(l.accounts)) {
		for _, what := range l.accounts[key].check() {
			found = append(found, anomaly{key, what})
		}
	}
	for id := range counters {
		if l.counted[id] != l.raised[id] {
			found = append(found, anomaly{"", fmt.Sprintf("counter %d is at %d, and %d effects have raised it", id, l.counted[id], l.raised[id])})
		}
	}
	return found
}

func (a *account) check() (found []string) {
	add := func(what string, args ...any) { found = append(found, fmt.Sprintf(what, args...)) }
	switch {
	case !a.expected:
		add("there was no such message")
	case len(a.claims) == 0 && a.acked:
		add("it was acknowledged and has no claim")
	case len(a.claims) == 0:
		add("it has no claim")
	}
	if len(a.claims) > 1 {
		add("it has %d claims", len(a.claims))
	}
	for _, outcome := range a.claims {
		if outcome != "settled" {
			add("its claim is %s", outcome)
		}
	}
	switch {
	case len(a.claims) > 0 && len(a.effects) == 0:
		add("its claim has no effect")
	case len(a.claims) == 0 && len(a.effects) > 0:
		add("its effect has no claim")
	case len(a.effects) > 1:
		add("it has %d effects: %v", len(a.effects), a.effects)
	}
	for _, e := range a.effects {
		if e.tenant != "" {
			add("%v was written under another's setting", e.mark)
		}
	}
	return append(found, a.checkSent()...)
}

// checkSent wants the messages of each effect's run, and no others.
func (a *account) checkSent() (found []string) {
	times := make(map[sent]int)
	for _, m := range a.sent {
		times[m]++
	}
	for _, e := range a.effects {
		for n := range e.messages {
			m := sent{e.mark, n}
			if times[m] != 1 {
				found = append(found, fmt.Sprintf("message %d of %v is in the outbox %d times", n, e.mark, times[m]))
			}
			delete(times, m)
		}
	}
	for m := range times {
		found = append(found, fmt.Sprintf("the outbox has message %d of %v, which is not in effect", m.number, m.mark))
	}
	slices.Sort(found)
	return found
}
