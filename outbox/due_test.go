package outbox_test

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"os"
	osexec "os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// The table and its clock decide, whatever the clock of the process says: the row is
// compared with the time at which it came into the outbox.
func TestScheduledMessagesAreSentWhenTheyAreDueAndNotBefore(t *testing.T) {
	testenv.NeedsSchema(t, 6)
	t.Parallel()
	eachDriver(t, func(t *testing.T, db *sql.DB, address string) {
		const wait = 300 * time.Millisecond
		key, payload := []byte("k\x00\xff"), []byte("\x00p")
		withKey := keyed(t.Context(), key, payload)
		withKey.Metadata.Set("a", "b\x00")
		withKey.UUID = "keyed"
		outbox.DeliverIn(withKey, wait)
		must(t, (&outbox.Publisher{DB: db}).Publish("t", withKey, later(t.Context(), "unkeyed", wait), later(t.Context(), "never", 24*time.Hour)))
		exec(t, db, `INSERT INTO oncemill.scheduled (topic, uuid, deliver_after, payload) VALUES ('t', 'infinity', 'infinity', NULL), ('t', '-infinity', '-infinity', NULL)`)
		due := value[time.Time](t, db, `SELECT min(deliver_after) FROM oncemill.scheduled WHERE uuid = 'keyed'`)
		dedupID := value[string](t, db, `SELECT dedup_id FROM oncemill.scheduled WHERE uuid = 'keyed'`)
		sink := newRecorder(nil)
		relay := start(t, &outbox.Relay{DB: db, Sink: sink, ListenURL: address, PollInterval: time.Hour})
		rows := make(map[string]outbox.Row)
		for range 3 {
			row := sink.next(t)
			rows[row.UUID] = row
			if row.UUID != "-infinity" && row.CreatedAt.Before(due) {
				t.Errorf("%s: moved at %v, due at %v", row.UUID, row.CreatedAt, due)
			}
		}
		relay.settled(t, 3)
		row := rows["keyed"]
		if row.DedupID != dedupID || row.Topic != "t" || !bytes.Equal(row.OrderingKey, key) || !bytes.Equal(row.Payload, payload) || row.Metadata["a"] != "b\x00" ||
			row.Metadata[outbox.DeliverAfterMetadata] != "" || row.Metadata[outbox.OriginMetadata] != row.CreatedAt.UTC().Format(time.RFC3339Nano) {
			t.Errorf("row is %+v", row)
		}
		if rows["unkeyed"].UUID == "" || rows["-infinity"].UUID == "" || scheduledCount(t, db) != 2 {
			t.Errorf("rows are %v, %d are still scheduled", rows, scheduledCount(t, db))
		}
	})
}

// A relay sees what is scheduled while it runs, at its next poll.
func TestWhatIsScheduledWhileTheRelayRunsIsSent(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	db := testenv.DB(t)
	sink := newRecorder(nil)
	start(t, &outbox.Relay{DB: db, Sink: sink})
	p := &outbox.Publisher{DB: db}
	for i, wait := range []time.Duration{-time.Hour, 0, 50 * time.Millisecond} {
		uuid := fmt.Sprint(i)
		must(t, p.Publish("t", later(t.Context(), uuid, wait)))
		if row := sink.next(t); row.UUID != uuid {
			t.Errorf("got %s, want %s", row.UUID, uuid)
		}
	}
}

// A scheduled row comes behind those of its key that were there before it was due, and
// before those that came afterwards.
func TestADueRowTakesItsPlaceAmongThoseOfItsKey(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	db := testenv.DB(t)
	p := &outbox.Publisher{DB: db}
	send := func(name string, wait time.Duration) {
		t.Helper()
		msg := keyed(t.Context(), []byte("k"), []byte(name))
		if wait != 0 {
			outbox.DeliverIn(msg, wait)
		}
		must(t, p.Publish("t", msg))
	}
	send("scheduled third", -time.Second)
	send("scheduled second", -time.Hour)
	send("first", 0)
	tx, err := db.Begin()
	must(t, err)
	defer tx.Rollback()
	if m := moveDue(t, tx, 10); m != 2 {
		t.Fatalf("moved %d", m)
	}
	must(t, tx.Commit())
	send("last", 0)
	sink := newRecorder(nil)
	start(t, &outbox.Relay{DB: db, Sink: sink})
	for _, want := range []string{"first", "scheduled second", "scheduled third", "last"} {
		if got := string(sink.next(t).Payload); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func moveDue(t *testing.T, tx *sql.Tx, most int) int {
	t.Helper()
	n, err := outbox.MoveDue(t.Context(), tx, "", most)
	must(t, err)
	return n
}

// 2,000 rows of 20 keys fall due at once, and two relays move and publish them.
func TestTwoRelaysKeepTheOrderOfWhatFallsDue(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	db := testenv.DB(t)
	const keys, each = 20, 100
	exec(t, db, `
		INSERT INTO oncemill.scheduled (topic, ordering_key, payload, deliver_after)
		SELECT 't', ('key-' || i % $1::int)::bytea, (i / $1::int)::text::bytea, now() - interval '1 hour' + i * interval '1 millisecond'
		FROM generate_series(0, $1::int * $2::int - 1) i ORDER BY random()`, keys, each)
	// What ids they get is what the order is made of. They are looked at as they come in.
	exec(t, db, `CREATE TABLE moved (id bigint, key bytea, n int);
		CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			INSERT INTO moved VALUES (NEW.id, NEW.ordering_key, convert_from(NEW.payload, 'UTF8')::int); RETURN NEW; END $$;
		CREATE TRIGGER note AFTER INSERT ON oncemill.outbox FOR EACH ROW EXECUTE FUNCTION note()`)
	sink := newRecorder(nil)
	one, two := &outbox.Relay{DB: db, Sink: sink}, &outbox.Relay{DB: db, Sink: sink}
	start(t, one)
	start(t, two)
	seen := make(map[string]int)
	for range keys * each {
		row := sink.next(t)
		seen[string(row.OrderingKey)+" "+string(row.Payload)]++
	}
	for what, n := range seen {
		if n != 1 {
			t.Errorf("%s came %d times", what, n)
		}
	}
	inversions := value[int](t, db, `SELECT count(*) FROM (SELECT n - lag(n) OVER (PARTITION BY key ORDER BY id) AS step FROM moved) s WHERE step <> 1`)
	if n := value[int](t, db, `SELECT count(*) FROM moved`); n != keys*each || inversions != 0 {
		t.Errorf("%d rows moved, %d of them out of order", n, inversions)
	}
}

// While one transaction moves, another one does not.
func TestOneMovesAtATime(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	db := testenv.DB(t)
	otherSchema(t, db, "other")
	for _, name := range []string{"oncemill", "other"} {
		exec(t, db, `INSERT INTO `+name+`.scheduled (topic, deliver_after) SELECT 't', now() FROM generate_series(1, 20)`)
	}
	var txs [3]*sql.Tx
	for i, want := range []int{10, 0, 10} {
		tx, err := db.Begin()
		must(t, err)
		defer tx.Rollback()
		txs[i] = tx
		schemaName := "oncemill"
		if i == 2 {
			schemaName = "other"
		}
		if n, err := outbox.MoveDue(t.Context(), tx, schemaName, 10); err != nil || n != want {
			t.Errorf("transaction %d moved %d, want %d (%v)", i, n, want, err)
		}
	}
	must(t, txs[0].Commit())
	if n := moveDue(t, txs[1], 20); n != 10 {
		t.Errorf("the other one moved %d", n)
	}
}

// A message is cancelled or sent, and one thing only, also where it falls due just then.
func TestACancellationThatRacesWithTheMove(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	db := testenv.DB(t)
	db.SetMaxOpenConns(20)
	const total = 500
	exec(t, db, `INSERT INTO oncemill.scheduled (topic, uuid, deliver_after)
		SELECT 't', i::text, now() + i * interval '2 milliseconds' FROM generate_series(1, $1) i`, total)
	sink := newRecorder(nil)
	start(t, &outbox.Relay{DB: db, Sink: sink, PollInterval: 2 * time.Millisecond})
	cancelled := make([]bool, total+1)
	var workers sync.WaitGroup
	for w := range 4 {
		workers.Go(func() {
			for i := w + 1; i <= total; i += 4 {
				for ahead := true; ahead; { // until about when it is due
					if err := db.QueryRow(`SELECT coalesce((SELECT deliver_after > now() + interval '2 milliseconds' FROM oncemill.scheduled WHERE uuid = $1), false)`, fmt.Sprint(i)).Scan(&ahead); err != nil {
						t.Error(err)
						return
					}
				}
				tx, err := db.Begin()
				if err != nil {
					t.Error(err)
					return
				}
				n, err := outbox.Cancel(context.Background(), tx, "t", fmt.Sprint(i))
				if err != nil {
					t.Error(err)
				}
				if i%10 == 0 { // a handler that fails has not cancelled
					err = tx.Rollback()
				} else {
					cancelled[i] = n == 1
					err = tx.Commit()
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	workers.Wait()
	poll(t, func() bool { return scheduledCount(t, db)+rowCount(t, db) == 0 })
	sent := make(map[string]int)
	for _, row := range sink.published() {
		sent[row.UUID]++
	}
	count := 0
	for i := 1; i <= total; i++ {
		if n := sent[fmt.Sprint(i)]; n > 1 || (n == 1) == cancelled[i] {
			t.Errorf("%d: sent %d times, cancelled %v", i, n, cancelled[i])
		}
		if cancelled[i] {
			count++
		}
	}
	t.Logf("%d of %d were cancelled", count, total)
}

// A row that somebody holds, who may be cancelling it, is not waited for, and those of its
// key do not overtake it.
func TestAHeldRowHoldsUpItsOwnKeyOnly(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	db := testenv.DB(t)
	exec(t, db, `INSERT INTO oncemill.scheduled (topic, uuid, ordering_key, deliver_after) VALUES
		('t', 'k1', 'k', now() - interval '4 s'), ('t', 'k2', 'k', now() - interval '3 s'), ('t', 'k3', 'k', now() - interval '1 s'),
		('t', 'other', 'o', now() - interval '2 s'), ('t', 'none', NULL, now())`)
	holder, err := db.Begin()
	must(t, err)
	defer holder.Rollback()
	if n, err := outbox.Cancel(t.Context(), holder, "", "k2"); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	sink := newRecorder(nil)
	start(t, &outbox.Relay{DB: db, Sink: sink})
	got := []string{sink.next(t).UUID, sink.next(t).UUID, sink.next(t).UUID}
	if slices.Sort(got); !slices.Equal(got, []string{"k1", "none", "other"}) {
		t.Errorf("got %v", got)
	}
	must(t, holder.Rollback())
	for _, want := range []string{"k2", "k3"} {
		if row := sink.next(t); row.UUID != want {
			t.Errorf("got %s, want %s", row.UUID, want)
		}
	}
}

// buffers is how many pages a statement touches.
func buffers(t *testing.T, tx *sql.Tx, query string) (pages int, plan string) {
	t.Helper()
	rows, err := tx.Query(`EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) ` + query)
	must(t, err)
	defer rows.Close()
	for rows.Next() {
		var line string
		must(t, rows.Scan(&line))
		plan += line + "\n"
	}
	for _, n := range regexp.MustCompile(`(?:hit|read)=(\d+)`).FindAllStringSubmatch(strings.SplitN(plan, "Planning", 2)[0], -1) {
		count, _ := strconv.Atoi(n[1])
		pages = max(pages, count)
	}
	return pages, plan
}

// A relay looks at the next one only, however many there are.
func TestWhatIsScheduledForNextWeekIsNotSteppedOver(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	db := testenv.DB(t)
	exec(t, db, `INSERT INTO oncemill.scheduled (topic, deliver_after) SELECT 't', now() + interval '7 days' FROM generate_series(1, 100000)`)
	exec(t, db, `INSERT INTO oncemill.scheduled (topic, deliver_after) SELECT 't', now() FROM generate_series(1, 10)`)
	for _, analyzed := range []bool{false, true} {
		if analyzed {
			exec(t, db, `ANALYZE oncemill.scheduled`)
		}
		tx, err := db.Begin()
		must(t, err)
		exec := func(query string) { _, err := tx.Exec(query); must(t, err) }
		exec(`SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off`)
		if pages, plan := buffers(t, tx, outbox.NextDueSQL("")); pages > 10 {
			t.Errorf("%d pages to find the next one:\n%s", pages, plan)
		}
		if pages, plan := buffers(t, tx, outbox.MoveDueSQL("", 1000)); pages > 600 { // 10 rows are deleted and inserted
			t.Errorf("%d pages to move ten:\n%s", pages, plan)
		}
		if pages, plan := buffers(t, tx, outbox.MoveDueSQL("", 1000)); pages > 30 {
			t.Errorf("%d pages to move none:\n%s", pages, plan)
		}
		must(t, tx.Rollback())
	}
}

// What was moved can stay in the table for long, where a transaction keeps vacuum from it.
func TestMovedRowsAreNotSteppedOverAgain(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	db := testenv.DB(t)
	old, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	must(t, err)
	defer old.Rollback()
	_, err = old.Exec(`SELECT FROM oncemill.scheduled`)
	must(t, err)
	const total = 40_000
	exec(t, db, `INSERT INTO oncemill.scheduled (topic, deliver_after) SELECT 't', now() - interval '1 hour' + i * interval '1 ms' FROM generate_series(1, $1) i`, total)
	relay := start(t, &outbox.Relay{DB: db, Sink: newRecorder(nil), PollInterval: time.Hour})
	relay.settled(t, total)
	must(t, relay.stop())
	steps := 0
	poll(t, func() bool {
		before := steps
		steps = value[int](t, db, `SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'scheduled_by_time'`)
		return steps >= total && steps == before
	})
	// Each chunk from the beginning would take 800,000, and each look 40,000.
	if most := 20 * total; steps > most {
		t.Errorf("%d steps in the index for %d rows, want at most %d", steps, total, most)
	}
	t.Logf("%d steps in the index for %d rows", steps, total)
}

// A process that is killed while it moves rows leaves them where they were.
func TestAMoveThatIsKilledLosesNothing(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	const address = "ONCEMILL_TEST_MOVE_IN"
	if url := os.Getenv(address); url != "" {
		moveAndWait(t, url)
		return
	}
	db, url := database(t)
	const total = 1500
	exec(t, db, `INSERT INTO oncemill.scheduled (topic, uuid, deliver_after) SELECT 't', i::text, now() FROM generate_series(1, $1) i`, total)
	child := osexec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	child.Env = append(os.Environ(), address+"="+url)
	out, err := child.StdoutPipe()
	must(t, err)
	must(t, child.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "moved 1000\n" {
		t.Errorf("the process says %q (%v)", line, err)
	}
	must(t, child.Process.Kill())
	_ = child.Wait()
	sink := newRecorder(nil)
	start(t, &outbox.Relay{DB: db, Sink: sink})
	seen := make(map[string]bool)
	for range total {
		seen[sink.next(t).UUID] = true
	}
	if len(seen) != total {
		t.Errorf("%d different ones were sent", len(seen))
	}
	poll(t, func() bool { return rowCount(t, db)+scheduledCount(t, db) == 0 })
}

// moveAndWait is what the process does that is killed.
func moveAndWait(t *testing.T, url string) {
	tx, err := testenv.Open(t, url).Begin()
	must(t, err)
	fmt.Printf("moved %d\n", moveDue(t, tx, 1000))
	<-t.Context().Done()
}

// The schedule waits for a database that goes away, and says so once.
func TestScheduledMessagesAreSentWhenTheDatabaseIsBack(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "a connection that ends with the session behind it")
	testenv.NeedsSchema(t, 6)
	db, url := database(t)
	own := testenv.Open(t, url)
	admin := testenv.DB(t) // another database of the same server
	name := value[string](t, db, `SELECT current_database()`)
	logger, logged := hearLog()
	sink := newRecorder(nil)
	relay := start(t, &outbox.Relay{DB: own, Sink: sink, Logger: logger})
	poll(t, func() bool { return relay.Ready() == nil })
	exec(t, admin, `ALTER DATABASE `+name+` WITH ALLOW_CONNECTIONS false`)
	exec(t, admin, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1`, name)
	poll(t, func() bool { return strings.Contains(logged(), "cannot move scheduled messages") })
	exec(t, admin, `ALTER DATABASE `+name+` WITH ALLOW_CONNECTIONS true`)
	must(t, (&outbox.Publisher{DB: db}).Publish("t", later(t.Context(), "u", time.Millisecond)))
	sink.next(t)
	poll(t, func() bool { return strings.Contains(logged(), "moves scheduled messages again") })
	if n := strings.Count(logged(), "cannot move scheduled messages"); n != 1 {
		t.Errorf("%d warnings, want 1:\n%s", n, logged())
	}
}

// A role that may relay as before but has no rights on the new table goes on relaying. It
// says at once what it lacks, and moves what is due once it has that.
func TestARelayWithoutRightsOnScheduledRowsStillRelays(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	for grants, want := range map[string]string{
		``: `GRANT SELECT, UPDATE (deliver_after), DELETE ON oncemill.scheduled TO "{role}"; GRANT INSERT ON oncemill.outbox TO "{role}"`,
		`GRANT SELECT, UPDATE, DELETE ON oncemill.scheduled TO {role}`: `GRANT INSERT ON oncemill.outbox TO "{role}"`,
	} {
		sink := newRecorder(nil)
		relay, db, role := relayWith(t, `GRANT SELECT, UPDATE, DELETE ON oncemill.outbox TO {role};`+grants, sink)
		logger, logged := hearLog()
		relay.Logger = logger
		must(t, (&outbox.Publisher{DB: db}).Publish("t", later(t.Context(), "due", 0)))
		running := start(t, relay)
		publish(t, db, "t", 1)
		if msg := sink.next(t); msg.UUID == "due" {
			t.Errorf("%s was sent", msg.UUID)
		}
		want = strings.ReplaceAll(strings.ReplaceAll(want, "{role}", role), `"`, `\"`)
		poll(t, func() bool { return strings.Contains(logged(), "cannot move scheduled messages") })
		if !strings.Contains(logged(), "("+want+")") {
			t.Errorf("it does not say %s:\n%s", want, logged())
		}
		must(t, running.stop())
		exec(t, db, strings.ReplaceAll(want, `\"`, `"`))
		start(t, &outbox.Relay{DB: relay.DB, Sink: sink})
		if msg := sink.next(t); msg.UUID != "due" {
			t.Errorf("%s was sent", msg.UUID)
		}
	}
}

// The least rights that a relay needs for all that it does: to lock rows takes UPDATE of
// some column.
func TestTheLeastRightsOfARelayThatSchedulesAndKeeps(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "SET ROLE")
	testenv.NeedsSchema(t, 6)
	db, url := database(t)
	role := testenv.Role(t, db)
	exec(t, db, `GRANT USAGE ON SCHEMA oncemill TO `+role+`; GRANT SELECT ON oncemill.schema_version TO `+role+`;
		GRANT SELECT, INSERT, UPDATE, DELETE ON oncemill.outbox TO `+role+`;
		GRANT SELECT, UPDATE (deliver_after), DELETE ON oncemill.scheduled TO `+role+`;
		GRANT SELECT, INSERT, UPDATE (id), DELETE ON oncemill.published TO `+role)
	own := testenv.OpenAs(t, url, role)
	keep(t, db, 10)
	must(t, (&outbox.Publisher{DB: db}).Publish("t", later(t.Context(), "u", 0)))
	sink := newRecorder(nil)
	start(t, &outbox.Relay{DB: own, Sink: sink, Keep: time.Minute})
	sink.next(t)
	poll(t, func() bool { return keptCount(t, db) == 1 && rowCount(t, db) == 0 })
}
