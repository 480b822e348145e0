package outbox_test

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

// underWay counts the transactions that have fetched their rows and wait for a Sink.
func underWay(t *testing.T, db *sql.DB) int {
	t.Helper()
	return value[int](t, db, `
		SELECT count(*) FROM pg_stat_activity
		WHERE datname = current_database() AND state = 'idle in transaction' AND query LIKE '%SKIP LOCKED%'`)
}

// twoUnderWay starts a relay on 40 rows, with batches of 10. The first is
// published, the second is on its way and the third is fetched.
func twoUnderWay(t *testing.T, db *sql.DB, relay *outbox.Relay) (*started, *gate, *heldBatch) {
	t.Helper()
	publish(t, db, "t", 40)
	sink := newGate()
	relay.DB, relay.Sink, relay.Batch = db, sink, 10
	relay.PublishTimeout = orElse(relay.PublishTimeout, time.Minute) // a quarter is not over before the test is
	running := start(t, relay)
	receive(t, sink.held).answer <- nil
	second := receive(t, sink.held)
	poll(t, func() bool { return underWay(t, db) == 2 })
	return running, sink, second
}

// numbers are what the payloads of rows end with.
func numbers(rows []outbox.Row) (numbers []int) {
	for _, row := range rows {
		var n int
		fmt.Sscanf(string(row.Payload), "t-%d", &n)
		numbers = append(numbers, n)
	}
	return numbers
}

// answerAll acknowledges batches until the outbox is empty, and returns their rows.
func answerAll(t *testing.T, db *sql.DB, sink *gate) (rows []outbox.Row) {
	t.Helper()
	for deadline := time.After(patience); rowCount(t, db) > 0; {
		select {
		case b := <-sink.held:
			rows = append(rows, b.rows...)
			b.answer <- nil
		case <-time.After(10 * time.Millisecond):
		case <-deadline:
			t.Fatalf("%d rows stay in the outbox", rowCount(t, db))
		}
	}
	return rows
}

func upTo(from, to int) (numbers []int) {
	for n := from; n < to; n++ {
		numbers = append(numbers, n)
	}
	return numbers
}

// The third batch is fetched while the second is on its way, and not published
// before that is acknowledged. Nothing comes twice.
func TestTheNextBatchIsFetchedAhead(t *testing.T) {
	t.Parallel()
	db, _ := database(t)
	running, sink, second := twoUnderWay(t, db, &outbox.Relay{})
	running.settled(t, 10)
	select {
	case <-sink.held:
		t.Error("a batch was published beside another")
	case <-time.After(50 * time.Millisecond): // nothing is to happen
	}
	second.answer <- nil
	if got := numbers(answerAll(t, db, sink)); !slices.Equal(got, upTo(20, 40)) {
		t.Errorf("rows %v came after the second batch", got)
	}
}

// A relay that stops finishes what is on its way, and leaves what it has fetched.
func TestStopGivesBackWhatIsOnlyFetched(t *testing.T) {
	t.Parallel()
	db, _ := database(t)
	running, _, second := twoUnderWay(t, db, &outbox.Relay{})
	stopped := make(chan error, 1)
	go func() { stopped <- running.stop() }()
	time.AfterFunc(50*time.Millisecond, func() { second.answer <- nil })
	if err := receive(t, stopped); err != nil {
		t.Fatal(err)
	}
	if n := rowCount(t, db); n != 20 || underWay(t, db) != 0 {
		t.Errorf("%d rows are left and %d transactions, want 20 and none", n, underWay(t, db))
	}
}

func TestDrainTimeoutCutsOffTwoBatches(t *testing.T) {
	t.Parallel()
	db, _ := database(t)
	publish(t, db, "t", 40)
	holding := make(chan struct{})
	n := 0
	relay := &outbox.Relay{DB: db, Batch: 10, DrainTimeout: 50 * time.Millisecond, Sink: script(func(ctx context.Context, rows []outbox.Row) []error {
		errs := make([]error, len(rows))
		if n++; n == 2 {
			close(holding)
			<-ctx.Done()
			for i := range errs[1:] {
				errs[1+i] = ctx.Err()
			}
		}
		return errs
	})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx) }()
	receive(t, holding)
	poll(t, func() bool { return underWay(t, db) == 2 })
	cancel()
	if err := receive(t, done); err == nil {
		t.Error("Run returned no error")
	}
	if n := rowCount(t, db); n != 29 {
		t.Errorf("%d rows are left, want 29: what the broker has is gone", n)
	}
}

// Whichever connections are lost, nothing else is: what was published comes again
// under the same dedup ids, and whether the first or the last time is what counts,
// in order.
func TestConnectionsLostWithTwoBatchesUnderWay(t *testing.T) {
	t.Parallel()
	for name, which := range map[string]string{ // of the transactions, by their begin
		"that of the batch on its way": "ORDER BY xact_start LIMIT 1",
		"that of the batch ahead":      "ORDER BY xact_start DESC LIMIT 1",
		"both":                         "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, _ := database(t)
			_, sink, second := twoUnderWay(t, db, &outbox.Relay{MinBackoff: time.Millisecond})
			exec(t, db, `
				SELECT pg_terminate_backend(pid) FROM (
					SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction' `+which+`
				) AS victims`)
			second.answer <- nil
			rows := append(slices.Clone(second.rows), answerAll(t, db, sink)...)
			if first, last := once(numbers(rows)); !slices.Equal(first, upTo(10, 40)) || !slices.Equal(last, upTo(10, 40)) {
				t.Errorf("rows came as %v", numbers(rows))
			}
			if again := len(rows) - 30; again > 20 {
				t.Errorf("%d rows came twice, want no more than two batches", again)
			}
			sameDedupIDs(t, rows)
		})
	}
}

// once returns numbers without repetitions, by the first and by the last time that
// each comes.
func once(numbers []int) (first, last []int) {
	for i, n := range numbers {
		if !slices.Contains(numbers[:i], n) {
			first = append(first, n)
		}
		if !slices.Contains(numbers[i+1:], n) {
			last = append(last, n)
		}
	}
	return first, last
}

func sameDedupIDs(t *testing.T, rows []outbox.Row) {
	t.Helper()
	ids := make(map[int64]string)
	for _, row := range rows {
		if id := ids[row.ID]; id != "" && id != row.DedupID {
			t.Errorf("row %d was published under two ids", row.ID)
		}
		ids[row.ID] = row.DedupID
	}
}

// A batch is settled beside the next one's way. If it cannot be, the next one is
// not settled either: its rows would stay behind those that come again.
func TestABatchIsNotSettledBeforeTheOneBefore(t *testing.T) {
	t.Parallel()
	db, _ := database(t)
	running, sink, second := twoUnderWay(t, db, &outbox.Relay{MinBackoff: time.Millisecond})
	running.settled(t, 10)
	blocker, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer blocker.Rollback()
	if _, err := blocker.Exec(`LOCK TABLE oncemill.outbox IN SHARE MODE`); err != nil { // nobody can delete
		t.Fatal(err)
	}
	second.answer <- nil
	third := receive(t, sink.held)
	const deleting = `datname = current_database() AND query LIKE 'DELETE%' AND wait_event_type = 'Lock'`
	poll(t, func() bool { return value[int](t, db, `SELECT count(*) FROM pg_stat_activity WHERE `+deleting) == 1 })
	exec(t, db, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE `+deleting)
	if err := blocker.Rollback(); err != nil {
		t.Fatal(err)
	}
	third.answer <- nil
	rows := answerAll(t, db, sink)
	if got := numbers(rows); !slices.Equal(got, upTo(10, 40)) {
		t.Errorf("rows %v came after the third batch, want all from 10 on", got)
	}
	sameDedupIDs(t, slices.Concat(second.rows, third.rows, rows))
}

// A broker that acknowledges some of a batch gets the rest again before it gets
// the batch that was fetched meanwhile: the order of keys depends on it.
func TestRowsThatStayBehindAreNotOvertaken(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	const total = 1000
	publish(t, db, "t", total)
	var mu sync.Mutex
	var order []outbox.Row
	batches := 0
	relay := start(t, &outbox.Relay{DB: db, Batch: 50, MinBackoff: time.Millisecond, Sink: script(func(_ context.Context, rows []outbox.Row) []error {
		mu.Lock()
		defer mu.Unlock()
		batches++
		errs := make([]error, len(rows))
		good := len(rows)
		if batches%3 == 0 && len(rows) > 1 {
			good = batches % len(rows)
		}
		for i := range errs[good:] {
			errs[good+i] = outbox.ErrUnavailable
		}
		order = append(order, rows[:good]...)
		return errs
	})})
	relay.settled(t, total)
	mu.Lock()
	defer mu.Unlock()
	if got := numbers(order); !slices.Equal(got, upTo(0, total)) {
		t.Errorf("the order is %v", got)
	}
}

// What is fetched ahead is not held for a broker that takes its time.
func TestASlowBrokerHasNoRowsHeldForIt(t *testing.T) {
	t.Parallel()
	db, _ := database(t)
	const timeout = 2 * time.Second
	running, sink, second := twoUnderWay(t, db, &outbox.Relay{PublishTimeout: timeout})
	if due, ok := second.ctx.Deadline(); !ok || time.Until(due) > timeout {
		t.Errorf("the batch may be locked until %v", due)
	}
	poll(t, func() bool { return underWay(t, db) == 1 })
	running.settled(t, 10)
	second.answer <- nil
	if got := numbers(answerAll(t, db, sink)); !slices.Equal(got, upTo(20, 40)) {
		t.Errorf("rows %v came after the second batch", got)
	}
}

// Two batches together hold no more than one may.
func TestTwoBatchesAreBoundedByBytes(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		kilobytes, transactions int
	}{
		"small":  {1, 2},
		"medium": {400, 2},
		"large":  {1000, 1}, // ten of them are more than the half
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, _ := database(t)
			exec(t, db, `
				INSERT INTO oncemill.outbox (topic, payload)
				SELECT 't', convert_to(repeat('x', 1000 * $1), 'UTF8') FROM generate_series(1, 40)`, c.kilobytes)
			sink := newGate()
			start(t, &outbox.Relay{DB: db, Sink: sink, Batch: 10, PublishTimeout: time.Minute})
			receive(t, sink.held).answer <- nil
			second := receive(t, sink.held)
			if c.transactions == 2 {
				poll(t, func() bool { return underWay(t, db) == 2 })
			} else {
				time.Sleep(200 * time.Millisecond) // nothing is to happen
			}
			if n := underWay(t, db); n != c.transactions {
				t.Errorf("%d transactions are under way, want %d", n, c.transactions)
			}
			second.answer <- nil
			if n := len(answerAll(t, db, sink)); n != 20 {
				t.Errorf("%d rows came after the second batch, want 20", n)
			}
		})
	}
}

// One row that is far larger than the others before is not read beside them, and
// comes in its place.
func TestALargeRowAmongSmallOnes(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	const large, total = 150, 300
	msgs := make([]*message.Message, total)
	for i := range msgs {
		msgs[i] = message.NewMessage("", fmt.Appendf(nil, "t-%d", i))
	}
	msgs[large].Payload = append(msgs[large].Payload, bytes.Repeat([]byte{' '}, 20<<20)...)
	msgs[large+1].Metadata.Set(outbox.OrderingKeyMetadata, string(bytes.Repeat([]byte{'k'}, 5<<20)))
	msgs[large+2].Metadata.Set("m", string(bytes.Repeat([]byte{'m'}, 5<<20)))
	if err := (&outbox.Publisher{DB: db}).Publish("t", msgs...); err != nil {
		t.Fatal(err)
	}
	sink := newRecorder(nil)
	start(t, &outbox.Relay{DB: db, Sink: sink, Batch: 50}).settled(t, total)
	rows := sink.published()
	slices.SortStableFunc(rows, func(a, b outbox.Row) int { return len(a.OrderingKey) - len(b.OrderingKey) })
	rows = slices.Insert(rows[:total-1], large+1, rows[total-1]) // the only one with a key, which may come at any time
	if got := numbers(rows); !slices.Equal(got, upTo(0, total)) {
		t.Errorf("the order is %v", got)
	}
	if n := []int{len(rows[large].Payload), len(rows[large+1].OrderingKey), len(rows[large+2].Metadata["m"])}; n[0] != 20<<20+5 || n[1] != 5<<20 || n[2] != 5<<20 {
		t.Errorf("the large rows have %v bytes", n)
	}
}

// Without a second connection to be had, batches go out one by one.
func TestARelayNeedsOneConnection(t *testing.T) {
	t.Parallel()
	db, url := database(t)
	own := testenv.Open(t, url)
	own.SetMaxOpenConns(2)
	publish(t, db, "t", 100)
	taken, err := own.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	sink := newRecorder(nil)
	start(t, &outbox.Relay{DB: own, Sink: sink, Batch: 10}).settled(t, 100)
	if got := numbers(sink.published()); !slices.Equal(got, upTo(0, 100)) {
		t.Errorf("the order is %v", got)
	}
}

// Batches are small for a broker that is slow, and grow for one that is not.
func TestBatchesFollowTheBroker(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	publish(t, db, "t", 3000)
	var sizes []int
	slow := true
	relay := start(t, &outbox.Relay{DB: db, PublishTimeout: time.Minute, Sink: script(func(_ context.Context, rows []outbox.Row) []error {
		sizes = append(sizes, len(rows))
		if slow = slow && len(rows) > 125; slow {
			time.Sleep(300 * time.Millisecond)
		}
		return make([]error, len(rows))
	})})
	relay.settled(t, 3000)
	least, most := slices.Min(sizes[:len(sizes)-1]), slices.Max(sizes)
	if sizes[0] != 500 || least > 125 || most <= 500 {
		t.Errorf("batches are %v", sizes)
	}
}

// Long runs of ids are deleted as ranges, and nothing else is.
func TestOnlyWhatIsPublishedIsDeleted(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	publish(t, db, "t", 400)
	exec(t, db, `UPDATE oncemill.outbox SET not_before = now() + interval '1 hour' WHERE uuid IN ('t-70', 't-71', 't-300')`)
	sink := newRecorder(func(row outbox.Row) error {
		if row.UUID == "t-140" || row.UUID == "t-399" {
			return fmt.Errorf("not this one")
		}
		return nil
	})
	start(t, &outbox.Relay{DB: db, Sink: sink, MinBackoff: time.Hour, MaxBackoff: time.Hour}).settled(t, 397)
	const left = `SELECT string_agg(uuid, ' ' ORDER BY id) FROM oncemill.outbox`
	if got := value[string](t, db, left); got != "t-70 t-71 t-140 t-300 t-399" {
		t.Errorf("left are %s", got)
	}
}

// An endingContext ends when it is asked for the n-th time whether it has.
type endingContext struct {
	context.Context
	end  context.CancelFunc
	left atomic.Int64
}

func endingAt(ctx context.Context, n int) *endingContext {
	e := new(endingContext)
	e.Context, e.end = context.WithCancel(ctx)
	e.left.Store(int64(n))
	return e
}

func (e *endingContext) Err() error {
	if e.left.Add(-1) <= 0 {
		e.end()
	}
	return e.Context.Err()
}

// Wherever Run's context ends, what the broker has is gone from the outbox, and what
// is not gone is still there for others.
func TestRunEndsAnywhere(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	const total = 40
	for n := 1; ; n++ {
		publish(t, db, "t", total)
		sink := newRecorder(nil)
		ctx := endingAt(t.Context(), n)
		relay := &outbox.Relay{DB: db, Sink: sink, Batch: 5, PollInterval: time.Hour}
		relay.Observer = &outbox.Observer{Batch: func(outbox.BatchResult) {
			if len(sink.published()) == total {
				time.AfterFunc(time.Second, ctx.end) // it has nothing to do
			}
		}}
		if err := relay.Run(ctx); err != nil {
			t.Fatal(err)
		}
		published := sink.published()
		if got := numbers(published); !slices.Equal(got, upTo(0, len(got))) {
			t.Fatalf("stopped at %d: rows came as %v", n, got)
		}
		free := value[int](t, db, `SELECT count(*) FROM (SELECT FROM oncemill.outbox FOR UPDATE SKIP LOCKED) AS free`)
		if len(published)+free != total {
			t.Fatalf("stopped at %d: %d rows are published and %d left, want %d together", n, len(published), free, total)
		}
		if free == 0 {
			return
		}
		exec(t, db, `TRUNCATE oncemill.outbox`)
	}
}
