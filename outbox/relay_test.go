package outbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.uber.org/goleak"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

func TestRelayPublishesAndDeletes(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	before := time.Now().Add(-time.Second)
	msg := message.NewMessage("u1", []byte("paid"))
	msg.Metadata.Set("tenant", "acme")
	msg.Metadata.Set(outbox.OriginMetadata, "that of another message")
	if err := (&outbox.Publisher{DB: db}).Publish("orders", msg); err != nil {
		t.Fatal(err)
	}
	dedup := value[string](t, db, `SELECT dedup_id FROM oncemill.outbox`)

	sink := newRecorder(nil)
	relay := start(t, &outbox.Relay{DB: db, Sink: sink})
	row := sink.next(t)
	if row.Topic != "orders" || row.UUID != "u1" || string(row.Payload) != "paid" || row.DedupID != dedup || row.Attempts != 0 {
		t.Errorf("row is %+v", row)
	}
	origin, err := time.Parse(time.RFC3339Nano, row.Metadata.Get(outbox.OriginMetadata))
	if err != nil || origin.Before(before) || !origin.Equal(row.CreatedAt) {
		t.Errorf("origin is %v (%v), the row is from %v", origin, err, row.CreatedAt)
	}
	delete(row.Metadata, outbox.OriginMetadata)
	if len(row.Metadata) != 1 || row.Metadata["tenant"] != "acme" {
		t.Errorf("metadata is %v", row.Metadata)
	}
	if b := receive(t, relay.batches); b.Published != 1 || b.Deferred+b.Parked+b.Unavailable != 0 || b.Took <= 0 || !b.Oldest.Equal(row.CreatedAt) {
		t.Errorf("batch is %+v", b)
	}
	if n := rowCount(t, db); n != 0 {
		t.Errorf("%d rows left", n)
	}
	if err := relay.Ready(); err != nil {
		t.Errorf("not ready: %v", err)
	}
}

// What SQL can insert goes out as well: defaults, other JSON types, a time.
func TestRelayPublishesRowsFromSQL(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	exec(t, db, `INSERT INTO oncemill.outbox (topic) VALUES ('bare')`)
	exec(t, db, `INSERT INTO oncemill.outbox (topic, metadata, not_before) VALUES
		('types', '{"s": "x", "n": 7, "b": true, "z": null, "o": {"a": [1]}}', now() - interval '1 hour'),
		('later', '{}', now() + interval '1 hour')`)
	sink := newRecorder(nil)
	relay := start(t, &outbox.Relay{DB: db, Sink: sink})
	bare, types := sink.next(t), sink.next(t)
	if bare.Topic != "bare" || len(bare.UUID) != 36 || len(bare.Payload) != 0 {
		t.Errorf("row is %+v", bare)
	}
	for key, want := range map[string]string{"s": "x", "n": "7", "b": "true", "z": "", "o": `{"a": [1]}`} {
		if got, ok := types.Metadata[key]; !ok || got != want {
			t.Errorf("metadata %s is %q, want %q", key, got, want)
		}
	}
	relay.settled(t, 2)
	if topic := value[string](t, db, `SELECT string_agg(topic, ',') FROM oncemill.outbox`); topic != "later" {
		t.Errorf("left are %s, want later", topic)
	}
}

func TestARowWithATimeThatDriversCannotReadDoesNotStopTheRelay(t *testing.T) {
	t.Parallel()
	db, _ := database(t)
	for _, at := range []string{"infinity", "-infinity", "4713-01-01 BC", "294276-01-01", "2026-01-01"} {
		exec(t, db, `INSERT INTO oncemill.outbox (topic, created_at) VALUES ('t', $1)`, at)
	}
	sink := newRecorder(nil)
	relay := &outbox.Relay{DB: db, Sink: sink}
	start(t, relay)
	for range 5 {
		sink.next(t)
	}
}

func TestMetadataOfAnyBytesComesThrough(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	metadata := message.Metadata{
		"plain":               "grüße <&> \u2028 \U0001F600",
		"":                    "empty key",
		"empty value":         "",
		"nul":                 "a\x00b",
		"nul\x00key":          "v",
		"not utf-8":           "\xff\xfe",
		"\xc3\x28":            "key not utf-8",
		"all":                 string(all),
		"oncemill:base64":     "the reserved name itself",
		"\\u0000":             `looks like an escape: \u0000`,
		"surrogate":           "\xed\xa0\x80",
		"noncharacter \uffff": "\ufffe\ufffd",
	}
	msg := message.NewMessage("u", nil)
	msg.Metadata = metadata
	if err := (&outbox.Publisher{DB: db}).Publish("t", msg); err != nil {
		t.Fatal(err)
	}
	sink := newRecorder(nil)
	start(t, &outbox.Relay{DB: db, Sink: sink})
	got := sink.next(t).Metadata
	delete(got, outbox.OriginMetadata)
	if len(got) != len(metadata) {
		t.Errorf("%d pairs, want %d", len(got), len(metadata))
	}
	for key, want := range metadata {
		if got[key] != want {
			t.Errorf("%q is %q, want %q", key, got[key], want)
		}
	}
}

func TestRelayServesItsOwnSchemaOnly(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	const other = `we"ird Schema`
	otherSchema(t, db, other)
	publish(t, db, "default", 1)
	if err := (&outbox.Publisher{DB: db, Schema: other}).Publish("other", message.NewMessage("", nil)); err != nil {
		t.Fatal(err)
	}
	for schema, topic := range map[string]string{"": "default", other: "other"} {
		sink := newRecorder(nil)
		relay := start(t, &outbox.Relay{DB: db, Sink: sink, Schema: schema})
		if row := sink.next(t); row.Topic != topic {
			t.Errorf("schema %q: topic is %q, want %q", schema, row.Topic, topic)
		}
		if err := relay.stop(); err != nil {
			t.Error(err)
		}
		if n := len(sink.published()); n != 1 {
			t.Errorf("schema %q: %d rows, want 1", schema, n)
		}
	}
}

// Without a crash no row is published twice, however many relays there are, and
// none waits for another.
func TestSeveralRelaysShareTheWork(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	const total, relays = 3000, 4
	publish(t, db, "t", total)

	// The first batch of each relay waits until all relays hold one.
	var holding sync.WaitGroup
	holding.Add(relays)
	sinks := make([]*recorder, relays)
	var running []*started
	for i := range sinks {
		sinks[i] = newRecorder(nil)
		first := sync.OnceFunc(func() { holding.Done(); holding.Wait() })
		running = append(running, start(t, &outbox.Relay{DB: db, Batch: 50, Sink: script(
			func(ctx context.Context, rows []outbox.Row) []error {
				first()
				return sinks[i].PublishBatch(ctx, rows)
			})}))
	}
	poll(t, func() bool { return rowCount(t, db) == 0 })
	seen := make(map[string]int)
	for i, sink := range sinks {
		if err := running[i].stop(); err != nil {
			t.Error(err)
		}
		if len(sink.published()) == 0 {
			t.Errorf("relay %d published nothing", i)
		}
		for _, row := range sink.published() {
			seen[row.DedupID]++
		}
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("%s was published %d times", id, n)
		}
	}
	if len(seen) != total {
		t.Errorf("%d rows published, want %d", len(seen), total)
	}
}

func TestRefusedRowIsParkedAndTheOthersPass(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	publish(t, db, "before", 2)
	publish(t, db, "bad", 1)
	publish(t, db, "after", 2)
	exec(t, db, `INSERT INTO oncemill.outbox (topic, metadata) VALUES ('unreadable', '{"oncemill:base64": {"!": "!"}}')`)
	logger, logged := hearLog()
	sink := newRecorder(func(row outbox.Row) error {
		if row.Topic == "bad" {
			return fmt.Errorf("%w: 2 MB is more than the 1 MB that\x00the broker takes \xff", outbox.ErrRefused)
		}
		return nil
	})
	relay := start(t, &outbox.Relay{DB: db, Sink: sink, Logger: logger})
	if sum := relay.settled(t, 6); sum.Published != 4 || sum.Parked != 2 {
		t.Errorf("batches are %+v", sum)
	}
	publish(t, db, "next", 1)
	for range 4 {
		sink.next(t)
	}
	if row := sink.next(t); row.Topic != "next" {
		t.Errorf("topic is %s, want next", row.Topic)
	}
	relay.settled(t, 1)
	for topic, part := range map[string]string{"bad": "message refused: 2 MB is more", "unreadable": "oncemill:base64"} {
		got := value[string](t, db, `SELECT concat_ws(' ', attempts, parked_at IS NOT NULL, last_error) FROM oncemill.outbox WHERE topic = $1`, topic)
		if !strings.HasPrefix(got, "1 t ") || !strings.Contains(got, part) {
			t.Errorf("%s: row is %q", topic, got)
		}
		if !strings.Contains(logged(), "topic="+topic) {
			t.Errorf("the log does not name topic %s:\n%s", topic, logged())
		}
	}
	if n := rowCount(t, db); n != 2 {
		t.Errorf("%d rows left, want 2", n)
	}
}

// A number of attempts that SQL has written does not fail the batch.
func TestAttemptsDoNotOverflow(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	exec(t, db, `INSERT INTO oncemill.outbox (topic, attempts) VALUES ('refused', 2147483647), ('failed', 2147483647), ('refused', -2147483648), ('good', 0)`)
	logger, _ := hearLog()
	sink := newRecorder(func(row outbox.Row) error {
		switch row.Topic {
		case "refused":
			return outbox.ErrRefused
		case "failed":
			return errors.New("no")
		}
		return nil
	})
	relay := start(t, &outbox.Relay{DB: db, Sink: sink, Logger: logger})
	if sum := relay.settled(t, 4); sum.Published != 1 || sum.Parked != 2 || sum.Deferred != 1 {
		t.Errorf("batches are %+v", sum)
	}
	if got := value[string](t, db, `SELECT string_agg(attempts::text, ' ' ORDER BY id) FROM oncemill.outbox`); got != "2147483647 2147483647 -2147483647" {
		t.Errorf("attempts are %s", got)
	}
}

// A parked row can be tried again as the package comment says.
func TestParkedRowIsTriedAgain(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	publish(t, db, "t", 1)
	mended := make(chan struct{})
	sink := newRecorder(func(outbox.Row) error {
		select {
		case <-mended:
			return nil
		default:
			return outbox.ErrRefused
		}
	})
	relay := start(t, &outbox.Relay{DB: db, Sink: sink})
	relay.settled(t, 1)
	old := value[string](t, db, `SELECT dedup_id FROM oncemill.outbox`)
	close(mended)
	exec(t, db, `UPDATE oncemill.outbox SET parked_at = NULL, not_before = NULL, attempts = 0, dedup_id = gen_random_uuid()`)
	if row := sink.next(t); row.DedupID == old {
		t.Error("same dedup id")
	}
}

func TestFailedRowIsDeferredAndTheOthersPass(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	publish(t, db, "bad", 1)
	publish(t, db, "good", 3)
	logger, logged := hearLog()
	failures := 3
	sink := newRecorder(func(row outbox.Row) error {
		if row.Topic == "bad" && row.Attempts < failures {
			return errors.New("no stream for it yet")
		}
		return nil
	})
	// The relay polls in time for a row that it has deferred itself.
	relay := start(t, &outbox.Relay{DB: db, Sink: sink, Logger: logger,
		PollInterval: time.Hour, MinBackoff: 50 * time.Millisecond, MaxBackoff: 100 * time.Millisecond})
	for range 3 {
		if row := sink.next(t); row.Topic != "good" {
			t.Errorf("topic is %s before the others have passed", row.Topic)
		}
	}
	row := sink.next(t)
	if row.Topic != "bad" || row.Attempts != failures {
		t.Errorf("row is %+v", row)
	}
	if sum := relay.settled(t, 4+failures); sum.Published != 4 || sum.Deferred != failures {
		t.Errorf("batches are %+v", sum)
	}
	if n := strings.Count(logged(), "no stream for it yet"); n != 1 {
		t.Errorf("the log has the error %d times, want once:\n%s", n, logged())
	}
}

func TestDeferralDoublesUpToItsLimit(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	begun := time.Now()
	for _, attempts := range []int{0, 1, 3, 5, 6, 100} {
		exec(t, db, `INSERT INTO oncemill.outbox (topic, attempts) VALUES ('t', $1)`, attempts)
	}
	sink := newRecorder(func(outbox.Row) error { return errors.New("no") })
	relay := start(t, &outbox.Relay{DB: db, Sink: sink, PollInterval: time.Hour})
	relay.settled(t, 6)
	late := time.Since(begun).Seconds() // at most, between created_at and the attempt
	for attempts, want := range map[int]float64{1: 1, 2: 2, 4: 8, 6: 32, 7: 60, 101: 60} {
		got := value[float64](t, db, `SELECT extract(epoch FROM not_before - created_at) FROM oncemill.outbox WHERE attempts = $1`, attempts)
		if got < 0.7*want || got > 1.3*want+late {
			t.Errorf("after attempt %d the row waits %.1f s, want about %.0f", attempts, got, want)
		}
	}
}

func TestMaxAttemptsParks(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	publish(t, db, "t", 1)
	sink := newRecorder(func(outbox.Row) error { return errors.New("no") })
	relay := start(t, &outbox.Relay{DB: db, Sink: sink, MaxAttempts: 3, MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond})
	if sum := relay.settled(t, 3); sum.Deferred != 2 || sum.Parked != 1 {
		t.Errorf("batches are %+v", sum)
	}
	if got := value[int](t, db, `SELECT attempts FROM oncemill.outbox WHERE parked_at IS NOT NULL`); got != 3 {
		t.Errorf("parked after %d attempts, want 3", got)
	}
}

func TestFullBatchesDoNotWaitForThePoll(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	publish(t, db, "t", 25)
	sink := newRecorder(nil)
	relay := start(t, &outbox.Relay{DB: db, Sink: sink, Batch: 10, PollInterval: time.Hour})
	relay.settled(t, 25)
	if got := fmt.Sprint(sink.batches); got != "[10 10 5]" {
		t.Errorf("batches are %s", got)
	}
	for i, row := range sink.published() {
		if want := fmt.Sprintf("t-%d", i); row.UUID != want {
			t.Fatalf("row %d is %s, want %s", i, row.UUID, want)
		}
	}
	publish(t, db, "woken", 1)
	relay.Wake()
	relay.settled(t, 1)
}

// A transaction that commits late has lower ids than what was published before
// it. A relay in the midst of a backlog must come back for them.
func TestLateCommitIsNotPassedBy(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	late, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer late.Rollback()
	if err := outbox.InTx(late).Publish("late", message.NewMessage("", nil)); err != nil {
		t.Fatal(err)
	}
	publish(t, db, "t", 20)
	sink := newRecorder(func(row outbox.Row) error {
		if row.UUID == "t-10" { // of the second batch
			return late.Commit()
		}
		return nil
	})
	relay := start(t, &outbox.Relay{DB: db, Sink: sink, Batch: 10, PollInterval: time.Hour})
	relay.settled(t, 21)
	if rows := sink.published(); rows[20].Topic != "late" {
		t.Errorf("the last row is %+v", rows[20])
	}
}

// Payloads and ordering keys bound a batch as well, so that a relay's memory is
// bounded.
func TestBatchIsBoundedByBytes(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name      string
		key       func(i, bytes int) []byte
		megabytes []int
		bound     int // MiB
	}{
		{"payloads", func(i, bytes int) []byte { return nil }, []int{7, 7, 7, 40, 1, 1}, 16},
		{"ordered", func(i, bytes int) []byte { return fmt.Append(nil, i) }, []int{5, 5, 20, 1, 1}, 8},
		{"keys", func(i, n int) []byte { return append(bytes.Repeat([]byte{'k'}, n), byte(i)) }, []int{5, 5, 20, 1, 1}, 8},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			db := testenv.DB(t)
			for i, n := range test.megabytes {
				key := test.key(i, n<<20)
				if key != nil {
					testenv.NeedsSchema(t, 6)
				}
				msg := keyed(t.Context(), key, nil)
				if len(key) < n<<20 {
					msg.Payload = bytes.Repeat([]byte{'x'}, n<<20)
				}
				if err := (&outbox.Publisher{DB: db}).Publish("t", msg); err != nil {
					t.Fatal(err)
				}
			}
			sink := newRecorder(nil)
			relay := start(t, &outbox.Relay{DB: db, Sink: sink, PollInterval: time.Hour})
			relay.settled(t, len(test.megabytes))
			// A batch takes rows as long as what it has is below the bound.
			for rows := sink.published(); len(sink.batches) > 0; sink.batches = sink.batches[1:] {
				n := sink.batches[0]
				without := 0 // the last one
				for _, row := range rows[:n-1] {
					without += len(row.Payload) + len(row.OrderingKey)
				}
				if rows = rows[n:]; without >= test.bound<<20 {
					t.Errorf("a batch of %d rows has %d bytes without its last one", n, without)
				}
			}
		})
	}
}

func TestRelayStopsWithoutATrace(t *testing.T) {
	db, url := database(t)
	publish(t, db, "t", 1)
	ignore := goleak.IgnoreCurrent()
	sink := newRecorder(nil)
	relay := start(t, &outbox.Relay{DB: db, Sink: sink, ListenURL: url})
	relay.settled(t, 1)
	if err := relay.stop(); err != nil {
		t.Fatal(err)
	}
	goleak.VerifyNone(t, ignore)
}

// What goes out beside a row that cannot is no sign that the row has.
func TestTheLogDoesNotSayThatADeferredRowIsPublishedBeforeItIs(t *testing.T) {
	t.Parallel()
	db, _ := database(t)
	var away atomic.Bool
	away.Store(true)
	sink := newRecorder(func(row outbox.Row) error {
		if row.Topic == "missing" && away.Load() {
			return errors.New("no such topic")
		}
		return nil
	})
	logger, log := hearLog()
	publish(t, db, "missing", 1)
	relay := start(t, &outbox.Relay{DB: db, Sink: sink, Logger: logger, MinBackoff: 10 * time.Millisecond, MaxBackoff: 10 * time.Millisecond, PollInterval: 10 * time.Millisecond})
	for deferred := 0; deferred < 5; {
		publish(t, db, "orders", 1)
		deferred += relay.settled(t, 1).Deferred
	}
	if n := strings.Count(log(), "could not be published, will try"); n != 1 {
		t.Errorf("the failure is logged %d times:\n%s", n, log())
	}
	if strings.Contains(log(), "are dealt with") {
		t.Errorf("the row still waits, but the log says:\n%s", log())
	}
	away.Store(false)
	poll(t, func() bool { return strings.Contains(log(), "are dealt with") })
}
