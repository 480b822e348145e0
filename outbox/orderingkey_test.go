package outbox_test

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

// sameBytes tells nil from empty.
func sameBytes(a, b []byte) bool { return bytes.Equal(a, b) && (a == nil) == (b == nil) }

// keyed is a message with an ordering key, unless that is nil.
func keyed(ctx context.Context, key, payload []byte) *message.Message {
	msg := message.NewMessageWithContext(ctx, "u", payload)
	if key != nil {
		msg.Metadata.Set(outbox.OrderingKeyMetadata, string(key))
	}
	return msg
}

// Ordering keys and payloads come to the sink as they were published, whichever
// the way, and "none" stays different from "empty".
func TestOrderingKeysAndTombstonesComeThrough(t *testing.T) {
	t.Parallel()
	eachDriver(t, testOrderingKeys)
}

func testOrderingKeys(t *testing.T, db *sql.DB, address string) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	values := [][]byte{nil, {}, []byte("order-7"), {0}, []byte(`\x41'`), []byte("\xff\xfe\xed\xa0\x80"), all}
	publishAll := func(ctx context.Context, p message.Publisher, topic string) error {
		for i, key := range values {
			msg := keyed(ctx, key, values[(i+1)%len(values)])
			if err := p.Publish(topic, msg, keyed(ctx, values[0], values[0]), keyed(ctx, key, key)); err != nil {
				return err
			}
			if got, ok := msg.Metadata[outbox.OrderingKeyMetadata]; ok != (key != nil) || got != string(key) {
				t.Errorf("the message itself was changed: %v", msg.Metadata)
			}
		}
		return nil
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	p := &outbox.Publisher{DB: db}
	check(publishAll(t.Context(), p, "alone"))
	check(inTx(t, db, func(ctx context.Context) error { return publishAll(ctx, p, "Once") }))
	tx, err := db.Begin()
	check(err)
	defer tx.Rollback()
	check(publishAll(t.Context(), outbox.InTx(tx), "InTx"))
	check(publishAll(t.Context(), p.InTx(tx), "Publisher.InTx"))
	check(tx.Commit())

	const stored = `SELECT count(*) FROM oncemill.outbox WHERE metadata = '{}'`
	if n := value[int](t, db, stored); n != 4*3*len(values) {
		t.Errorf("%d rows without metadata", n)
	}
	sink := newRecorder(nil)
	relay := start(t, &outbox.Relay{DB: db, Sink: sink, ListenURL: address})
	rows := byID(t, sink, 4*3*len(values))
	for _, topic := range []string{"alone", "Once", "InTx", "Publisher.InTx"} {
		for i, key := range values {
			next := values[(i+1)%len(values)]
			for _, want := range [][2][]byte{{key, next}, {nil, nil}, {key, key}} {
				row := rows[0]
				rows = rows[1:]
				_, found := row.Metadata[outbox.OrderingKeyMetadata]
				if row.Topic != topic || !sameBytes(row.OrderingKey, want[0]) || !sameBytes(row.Payload, want[1]) || found {
					t.Errorf("%s: row is %+v, want key and payload %q", topic, row, want)
				}
			}
		}
	}
	if sum := relay.settled(t, 4*3*len(values)); sum.Deferred+sum.Parked != 0 {
		t.Errorf("batches are %+v", sum)
	}
}

// byID waits for so many rows, and returns them in the order of their ids.
func byID(t *testing.T, sink *recorder, n int) []outbox.Row {
	t.Helper()
	rows := make([]outbox.Row, n)
	for i := range rows {
		rows[i] = sink.next(t)
	}
	slices.SortFunc(rows, func(a, b outbox.Row) int { return cmp.Compare(a.ID, b.ID) })
	return rows
}

func TestOrderingKeysAndTombstonesFromSQL(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	exec(t, db, `INSERT INTO oncemill.outbox (topic, metadata, ordering_key, payload) VALUES
		('literal',  '{}', 'order-7', '{"state": "paid"}'),
		('bytes',    '{}', '\x00ff', NULL),
		('empty',    '{}', '', ''),
		('none',     '{}', NULL, ''),
		('metadata', '{"oncemill-ordering-key": "m", "a": "b"}', NULL, NULL),
		('both',     '{"oncemill-ordering-key": "m"}', 'c', 'p')`)
	exec(t, db, `INSERT INTO oncemill.outbox (topic) VALUES ('bare')`)
	sink := newRecorder(nil)
	start(t, &outbox.Relay{DB: db, Sink: sink})
	rows := byID(t, sink, 7)
	for i, want := range []outbox.Row{
		{Topic: "literal", OrderingKey: []byte("order-7"), Payload: []byte(`{"state": "paid"}`)},
		{Topic: "bytes", OrderingKey: []byte("\x00\xff")},
		{Topic: "empty", OrderingKey: []byte{}, Payload: []byte{}},
		{Topic: "none", Payload: []byte{}},
		{Topic: "metadata", OrderingKey: []byte("m")},
		{Topic: "both", OrderingKey: []byte("c"), Payload: []byte("p")},
		{Topic: "bare", Payload: []byte{}},
	} {
		row := rows[i]
		_, found := row.Metadata[outbox.OrderingKeyMetadata]
		if row.Topic != want.Topic || !sameBytes(row.OrderingKey, want.OrderingKey) || !sameBytes(row.Payload, want.Payload) || found {
			t.Errorf("%s: row is %+v", want.Topic, row)
		}
	}
}

// As long as nothing fails, one relay hands on rows with one key in their order.
func TestOneRelayKeepsTheOrderOfAKey(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	const keys, each = 10, 100
	for i := range each {
		msgs := make([]*message.Message, keys)
		for k := range msgs {
			msgs[k] = keyed(t.Context(), fmt.Appendf(nil, "key-%d", k), fmt.Append(nil, i))
		}
		if err := (&outbox.Publisher{DB: db}).Publish("t", msgs...); err != nil {
			t.Fatal(err)
		}
	}
	sink := newRecorder(nil)
	start(t, &outbox.Relay{DB: db, Sink: sink, Batch: 7}).settled(t, keys*each)
	seen := make(map[string]int)
	for _, row := range sink.published() {
		key := string(row.OrderingKey)
		if got, want := string(row.Payload), fmt.Sprint(seen[key]); got != want {
			t.Fatalf("%s: %s came where %s belongs", key, got, want)
		}
		seen[key]++
	}
	if len(seen) != keys {
		t.Errorf("keys are %v", seen)
	}
}
