package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/oncemill/oncemill/examples/internal/screen"
)

// A sample has a value for each column.
type sample []float64

func (s sample) of(name string) float64 { return s[indexOf(name)] }

func (s sample) set(name string, value float64) { s[indexOf(name)] = value }

// String is the status on the screen.
func (s sample) String() string {
	memory := 0.0
	for _, p := range places {
		if p.ours {
			memory += s.of(p.role + "_rss_mb")
		}
	}
	count := func(name string) string { return screen.Thousands(int(s.of(name))) }
	return fmt.Sprintf("%s sent, %s effects (%s/s), drift %s, %s undelivered, p99 %s ms, %.0f MB in processes, claims %.0f MB, outbox %.0f MB",
		count("sent"), count("effects"), count("rate"), count("drift"), count("undelivered"), count("p99_ms"), memory, s.of("claims_mb"), s.of("outbox_mb"))
}

// samples are all of a run. Each is written when it is taken: a run that is interrupted
// keeps what it has.
type samples struct {
	all   []sample
	out   io.Writer
	begun bool
}

func newSamples(out io.Writer) *samples { return &samples{out: out} }

func (s *samples) add(one sample) error {
	s.all = append(s.all, one)
	var text strings.Builder
	if !s.begun {
		s.begun = true
		for i, c := range columns {
			text.WriteString(separator(i) + c.name)
		}
		text.WriteString("\n")
	}
	for i, value := range one {
		text.WriteString(separator(i) + strings.TrimSuffix(strconv.FormatFloat(value, 'f', 1, 64), ".0"))
	}
	_, err := io.WriteString(s.out, text.String()+"\n")
	return err
}

func separator(i int) string {
	if i == 0 {
		return ""
	}
	return ","
}

// values are those of a column.
func (s *samples) values(name string) (all []float64) {
	for _, one := range s.all {
		all = append(all, one.of(name))
	}
	return all
}

// sample takes one.
func (r *run) sample(ctx context.Context, since time.Duration) (s sample, err error) {
	s = make(sample, len(columns))
	s.set("seconds", since.Seconds())
	for _, take := range []func(context.Context, sample) error{r.sampleMessages, r.sampleLatency, r.sampleTables, r.samplePostgres} {
		if err := take(ctx, s); err != nil {
			return nil, err
		}
	}
	r.sampleProcesses(s)
	return s, nil
}

// sampleMessages counts from the end to the beginning, so that what moves on meanwhile is
// never less than what has come of it.
func (r *run) sampleMessages(ctx context.Context, s sample) error {
	arrivals, err := r.arrivals.count(ctx, r.db)
	if err != nil {
		return err
	}
	effects, err := r.effects.count(ctx, r.db)
	if err != nil {
		return err
	}
	sent, err := stored(ctx, r.broker, orders, charges)
	if err != nil {
		return err
	}
	s.set("sent", float64(sent))
	s.set("effects", float64(effects))
	s.set("arrivals", float64(arrivals))
	s.set("drift", float64(sent-effects))
	s.set("undelivered", float64(effects-arrivals))
	now := time.Now()
	if !r.sampled.IsZero() {
		s.set("rate", float64(effects-r.before)/now.Sub(r.sampled).Seconds())
	}
	r.sampled, r.before = now, effects
	return nil
}

// sampleLatency looks at what has arrived since the sample before.
func (r *run) sampleLatency(ctx context.Context, s sample) error {
	const query = `
SELECT COALESCE(max(id), $1), COALESCE(percentile_cont(0.5) WITHIN GROUP (ORDER BY took), 0),
	COALESCE(percentile_cont(0.99) WITHIN GROUP (ORDER BY took), 0)
FROM arrivals WHERE id > $1`
	var half, most float64
	err := r.db.QueryRowContext(ctx, query, r.lastArrival).Scan(&r.lastArrival, &half, &most)
	s.set("p50_ms", half)
	s.set("p99_ms", most)
	return err
}

// sampleTables looks at the size of Oncemill's tables, with their indexes.
func (r *run) sampleTables(ctx context.Context, s sample) error {
	for _, table := range tables {
		const query = `
SELECT pg_total_relation_size(relid) / 1048576.0, n_dead_tup FROM pg_stat_user_tables
WHERE schemaname = 'oncemill' AND relname = $1`
		var size, dead float64
		if err := r.db.QueryRowContext(ctx, query, table).Scan(&size, &dead); err != nil {
			return err
		}
		s.set(table+"_mb", size)
		s.set(table+"_dead", dead)
	}
	var rows float64
	err := r.db.QueryRowContext(ctx, `SELECT count(*) FROM oncemill.outbox`).Scan(&rows)
	s.set("outbox_rows", rows)
	return err
}

var tables = []string{"claims", "outbox", "events", "published"}

// samplePostgres looks at the server's processes.
func (r *run) samplePostgres(ctx context.Context, s sample) error {
	rows, err := r.db.QueryContext(ctx, `SELECT pid, COALESCE(backend_type, '') FROM pg_stat_activity`)
	if err != nil {
		return err
	}
	defer rows.Close()
	var connections, memory float64
	for rows.Next() {
		var pid int
		var kind string
		if err := rows.Scan(&pid, &kind); err != nil {
			return err
		}
		memory += memoryOf(pid, "RssAnon") / (1 << 20)
		if kind == "client backend" {
			connections++
		}
	}
	s.set("connections", connections)
	s.set("postgres_mb", memory)
	return rows.Err()
}

// sampleProcesses adds up the processes of each role.
func (r *run) sampleProcesses(s sample) {
	add := func(name string, value float64) { s[indexOf(name)] += value }
	for _, child := range r.children {
		add(child.Role+"_rss_mb", memoryOf(child.PID(), "VmRSS")/(1<<20))
		add(child.Role+"_heap_mb", float64(r.pulses[child].Heap)/(1<<20))
		add(child.Role+"_goroutines", float64(r.pulses[child].Goroutines))
	}
}
