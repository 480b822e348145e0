package postgres_test

import (
	"database/sql"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill/testcontainers/postgres"
)

// startPair starts a pair that is closed at the end of the test.
func startPair(t *testing.T, options postgres.PairOptions) *postgres.Pair {
	t.Helper()
	begun := time.Now()
	pair, err := postgres.StartPair(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("StartPair: %v", time.Since(begun))
	t.Cleanup(func() {
		if err := pair.Close(); err != nil {
			t.Errorf("close the pair: %v", err)
		}
		logs(t, pair)
	})
	return pair
}

// logs shows what the servers of a failed test say.
func logs(t *testing.T, pair *postgres.Pair) {
	t.Helper()
	if !t.Failed() {
		return
	}
	for i, server := range pair.Servers() {
		text, err := server.Log()
		t.Logf("log of server %d: %v\n%s", i, err, text)
	}
}

// timed runs one step of a pair.
func timed(t *testing.T, what string, step func() error) {
	t.Helper()
	begun := time.Now()
	if err := step(); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	t.Logf("%s: %v", what, time.Since(begun))
}

func failover(t *testing.T, pair *postgres.Pair) {
	t.Helper()
	timed(t, "Failover", func() error { return pair.Failover(t.Context()) })
}

func rebuild(t *testing.T, pair *postgres.Pair) {
	t.Helper()
	timed(t, "Rebuild", func() error { return pair.Rebuild(t.Context()) })
}

// A writer commits all the time, over several connections, and remembers what it
// was told to be committed.
type writer struct {
	db    *sql.DB
	next  atomic.Int64
	stop  chan struct{}
	group sync.WaitGroup

	mu    sync.Mutex
	acked []int64
}

// write starts a writer on whichever server takes writes.
func write(t *testing.T, pair *postgres.Pair) *writer {
	t.Helper()
	w := &writer{db: open(t, pair.URL("")), stop: make(chan struct{})}
	execute(t, w.db, "CREATE TABLE effects (id bigint)")
	for range 4 {
		w.group.Go(w.run)
	}
	t.Cleanup(w.end)
	return w
}

func (w *writer) run() {
	for {
		select {
		case <-w.stop:
			return
		default:
		}
		id := w.next.Add(1)
		if _, err := w.db.Exec("INSERT INTO effects VALUES ($1)", id); err != nil {
			time.Sleep(5 * time.Millisecond) // in a failover
			continue
		}
		w.mu.Lock()
		w.acked = append(w.acked, id)
		w.mu.Unlock()
	}
}

func (w *writer) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acked)
}

// await waits for that many more commits.
func (w *writer) await(t *testing.T, more int) {
	t.Helper()
	wanted := w.count() + more
	eventually(t, "the writer goes on", func() bool { return w.count() >= wanted })
}

func (w *writer) end() {
	select {
	case <-w.stop:
	default:
		close(w.stop)
	}
	w.group.Wait()
}

// missing counts what was acknowledged and is not there, after the writer's end.
func (w *writer) missing(t *testing.T, server *postgres.Server) (n int) {
	t.Helper()
	w.end()
	err := open(t, server.URL("")).QueryRowContext(t.Context(),
		"SELECT count(*) FROM unnest($1::bigint[]) AS id WHERE id NOT IN (SELECT id FROM effects)", pq.Array(w.acked)).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAFailoverLosesNothingThatWasAcknowledged(t *testing.T) {
	t.Parallel()
	pair := startPair(t, postgres.PairOptions{Volatile: true})
	first, servers, address := pair.Primary(), pair.Servers(), pair.URL("")
	w := write(t, pair)
	for turn := range 3 {
		w.await(t, 200)
		failover(t, pair)
		if pair.Primary() != servers[1-turn%2] || pair.Standby() != servers[turn%2] {
			t.Fatal("the servers have not changed sides")
		}
		w.await(t, 100) // alone
		rebuild(t, pair)
	}
	w.await(t, 200)
	failover(t, pair) // to what the last Rebuild has made
	if n := w.missing(t, pair.Primary()); n > 0 {
		t.Errorf("%d of %d acknowledged commits are missing", n, w.count())
	}
	if pair.Primary() != first || pair.URL("") != address {
		t.Errorf("after an even number of failovers the primary is %s, and was %s", pair.Primary().URL(""), first.URL(""))
	}
	t.Logf("%d commits", w.count())
}

func TestAnAsynchronousStandbyThatLagsLosesCommitsInAFailover(t *testing.T) {
	t.Parallel()
	pair := startPair(t, postgres.PairOptions{Volatile: true, Async: true})
	w := write(t, pair)
	w.await(t, 100)
	timed(t, "Detach", func() error { return pair.Detach(t.Context()) })
	w.await(t, 100)
	failover(t, pair)
	w.await(t, 1)
	if n := w.missing(t, pair.Primary()); n < 100 {
		t.Errorf("%d of %d acknowledged commits are missing, want the 100 that the standby did not receive", n, w.count())
	}
	rebuild(t, pair) // for all that
	failover(t, pair)
	query[int](t, open(t, pair.URL("")), "SELECT count(*) FROM effects")
}

func TestCommitsWaitForADetachedStandby(t *testing.T) {
	t.Parallel()
	pair := startPair(t, postgres.PairOptions{Volatile: true})
	db := open(t, pair.URL(""))
	execute(t, db, "CREATE TABLE effects (id bigint)")
	if err := pair.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	waiting := "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
	committed := make(chan error, 1)
	go func() {
		_, err := db.Exec("INSERT INTO effects VALUES (1)")
		committed <- err
	}()
	eventually(t, "the COMMIT waits", func() bool { return query[bool](t, db, waiting) })
	timed(t, "Attach", func() error { return pair.Attach(t.Context()) })
	if err := <-committed; err != nil {
		t.Fatal(err)
	}
	if err := pair.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := db.Exec("INSERT INTO effects VALUES (2)")
		committed <- err
	}()
	eventually(t, "the COMMIT waits", func() bool { return query[bool](t, db, waiting) })
	failover(t, pair)
	if err := <-committed; err == nil {
		t.Error("a COMMIT that the standby did not receive was acknowledged")
	}
	db = open(t, pair.URL(""))
	if n := query[int](t, db, "SELECT sum(id) FROM effects"); n != 1 {
		t.Errorf("the rows add up to %d, not 1", n)
	}
}

func TestServersOfAPairCanBeKilledStartedAndFrozen(t *testing.T) {
	t.Parallel()
	pair := startPair(t, postgres.PairOptions{Volatile: true})
	w := write(t, pair)
	w.await(t, 50)
	for _, server := range pair.Servers() {
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.await(t, 50)
	}
	rebuild(t, pair) // a standby that runs
	if err := pair.Standby().Freeze(); err != nil {
		t.Fatal(err)
	}
	if err := pair.Primary().Freeze(); err != nil {
		t.Fatal(err)
	}
	failover(t, pair)
	w.await(t, 50)
	if n := w.missing(t, pair.Primary()); n > 0 {
		t.Errorf("%d of %d acknowledged commits are missing", n, w.count())
	}
}

func TestAPairSaysWhatItNeedsBeforeAFailover(t *testing.T) {
	t.Parallel()
	for _, setting := range []string{"primary_conninfo", "synchronous_standby_names"} {
		_, err := postgres.StartPair(t.Context(), postgres.PairOptions{Settings: map[string]string{setting: "x"}})
		if err == nil || !strings.Contains(err.Error(), "PairOptions.Settings has "+setting) {
			t.Errorf("%s: %v", setting, err)
		}
	}
	pair := startPair(t, postgres.PairOptions{Volatile: true, Settings: map[string]string{"application_name": "x"}})
	if err := pair.Standby().Kill(); err != nil {
		t.Fatal(err)
	}
	if err := pair.Failover(t.Context()); err == nil || !strings.Contains(err.Error(), "standby is not running") {
		t.Errorf("without a standby: %v", err)
	}
	if !pair.Primary().Running() {
		t.Fatal("the primary was killed for a failover that could not be")
	}
	rebuild(t, pair)
	old := pair.Primary()
	failover(t, pair)
	if err := pair.Failover(t.Context()); err == nil || !strings.Contains(err.Error(), "call Rebuild first") {
		t.Errorf("twice: %v", err)
	}
	if err := old.Start(t.Context()); err != nil { // by mistake
		t.Fatal(err)
	}
	if !query[bool](t, open(t, old.URL("")), "SELECT pg_is_in_recovery()") {
		t.Error("the killed primary takes writes beside the new one")
	}
	rebuild(t, pair)
	for _, server := range pair.Servers() {
		if name := query[string](t, open(t, server.URL("")), "SHOW application_name"); name != "x" {
			t.Errorf("a setting has not reached a server: %q", name)
		}
	}
}
