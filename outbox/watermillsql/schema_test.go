package watermillsql_test

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/outbox/watermillsql"
)

func publisher(t *testing.T, tx sql.ContextExecutor, adapter watermillsql.Schema) *sql.Publisher {
	t.Helper()
	p, err := sql.NewPublisher(tx, sql.PublisherConfig{SchemaAdapter: adapter}, watermill.NopLogger{})
	must(t, err)
	return p
}

// odd are messages of all the kinds that there are.
func odd() (all []*message.Message) {
	for i, payload := range [][]byte{nil, {}, []byte("{}"), []byte("\x00\x01'\\\xff \\x41")} {
		msg := message.NewMessage(fmt.Sprintf("'%d\\\"", i), payload)
		switch i {
		case 1:
			msg.Metadata.Set(outbox.OrderingKeyMetadata, "")
			msg.Metadata.Set("plain", `it's "quoted" {a,b}`)
		case 2:
			msg.Metadata.Set(outbox.OrderingKeyMetadata, "order-7\x00\xff")
			msg.Metadata.Set("key'\\", "v\x00\xff")
		case 3:
			msg.UUID, msg.Metadata = "", nil
		}
		all = append(all, msg)
	}
	return all
}

// stored are the rows of a topic in full, but for what differs in each row anyway.
const storedSQL = `SELECT concat_ws('|', uuid, metadata, coalesce(encode(ordering_key, 'hex'), 'NULL'), coalesce(encode(payload, 'hex'), 'NULL'),
	attempts, coalesce(not_before::text, parked_at::text, last_error, 'NULL')) FROM oncemill.outbox WHERE topic = $1 ORDER BY id`

func TestAWatermillSQLPublisherStoresWhatAnOutboxPublisherStores(t *testing.T) {
	t.Parallel()
	eachDriver(t, func(t *testing.T, db *stdsql.DB) {
		tx, err := db.Begin()
		must(t, err)
		defer tx.Rollback()
		must(t, outbox.InTx(tx).Publish("outbox", odd()...))
		must(t, publisher(t, tx, watermillsql.Schema{}).Publish("watermill-sql", odd()...))
		must(t, publisher(t, tx, watermillsql.Schema{}).Publish("watermill-sql-none"))
		for _, msg := range odd() {
			must(t, publisher(t, tx, watermillsql.Schema{}).Publish("one-by-one", msg))
		}
		must(t, tx.Commit())
		want := rows(t, db, storedSQL, "outbox")
		if len(want) != len(odd()) {
			t.Fatalf("%d rows", len(want))
		}
		same(t, "rows of one call", rows(t, db, storedSQL, "watermill-sql"), want)
		same(t, "rows of a call each", rows(t, db, storedSQL, "one-by-one"), want)
	})
}

// A call may mix what is to be sent at once and later.
func TestAWatermillSQLPublisherSchedulesWhatAnOutboxPublisherSchedules(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	const scheduledSQL = `SELECT concat_ws('|', uuid, metadata, coalesce(encode(ordering_key, 'hex'), 'NULL'), coalesce(encode(payload, 'hex'), 'NULL'), deliver_after)
		FROM oncemill.scheduled WHERE topic = $1 ORDER BY id`
	mixed := func() (all []*message.Message) {
		for i, msg := range odd() {
			all = append(all, msg)
			in, at := msg.Copy(), msg.Copy()
			outbox.DeliverIn(in, time.Duration(i)*time.Hour+time.Nanosecond)
			outbox.DeliverAt(at, time.Date(2026, 12, 24, 18, 0, i, 1, time.UTC))
			all = append(all, in, at)
		}
		return all
	}
	eachDriver(t, func(t *testing.T, db *stdsql.DB) {
		tx, err := db.Begin() // waits count from its begin
		must(t, err)
		defer tx.Rollback()
		must(t, outbox.InTx(tx).Publish("outbox", mixed()...))
		must(t, publisher(t, tx, watermillsql.Schema{}).Publish("watermill-sql", mixed()...))
		for _, msg := range mixed() {
			must(t, publisher(t, tx, watermillsql.Schema{}).Publish("one-by-one", msg))
		}
		must(t, tx.Commit())
		for query, n := range map[string]int{storedSQL: len(odd()), scheduledSQL: 2 * len(odd())} {
			want := rows(t, db, query, "outbox")
			if len(want) != n {
				t.Fatalf("%d rows, want %d", len(want), n)
			}
			same(t, "rows of one call", rows(t, db, query, "watermill-sql"), want)
			same(t, "rows of a call each", rows(t, db, query, "one-by-one"), want)
		}
	})
}

// With three arguments a message, watermill-sql's own schema ends at 21,845.
func TestThousandsOfMessagesAreStoredInOrder(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	const n = 30_000
	msgs := make([]*message.Message, n)
	for i := range msgs {
		msgs[i] = message.NewMessage(fmt.Sprint(i), nil)
	}
	must(t, publisher(t, db, watermillsql.Schema{}).Publish("t", msgs...))
	if got := value[int](t, db, `SELECT count(*) FROM (SELECT uuid::int - row_number() OVER (ORDER BY id) AS off FROM oncemill.outbox) AS o WHERE off = -1`); got != n {
		t.Errorf("%d messages are in their places", got)
	}
}

func TestTheTransactionDecidesAboutWhatAWatermillSQLPublisherWrites(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	tx, err := db.Begin()
	must(t, err)
	must(t, publisher(t, tx, watermillsql.Schema{}).Publish("t", message.NewMessage("rolled-back", nil)))
	must(t, tx.Rollback())

	inbox := &oncemill.Inbox{DB: db}
	for range 2 {
		must(t, inbox.Consumer("c").Once(t.Context(), "k", func(_ context.Context, tx oncemill.Tx) error {
			return publisher(t, tx, watermillsql.Schema{}).Publish("t", message.NewMessage("committed", nil))
		}))
	}
	same(t, "outbox", rows(t, db, `SELECT uuid FROM oncemill.outbox`), []string{"committed"})
}

func TestBadMessagesAreNamed(t *testing.T) {
	t.Parallel()
	p := watermillsql.Schema{ForwarderTopic: "events"}
	later := message.NewMessage("u", nil)
	later.Metadata.Set(outbox.DeliverAfterMetadata, "soon")
	for what, test := range map[string]struct {
		topic string
		msg   *message.Message
		want  string
	}{
		"nil":             {"t", nil, "it is nil"},
		"no topic":        {"", message.NewMessage("u", nil), "the topic is empty"},
		"no UTF-8":        {"\xff", message.NewMessage("u", nil), "the topic"},
		"NUL in the UUID": {"t", message.NewMessage("u\x00", nil), "the UUID"},
		"sent later":      {"t", later, `oncemill-deliver-after is "soon": want a time`},
		"no envelope":     {"events", message.NewMessage("u", []byte("x")), "forwarder.Publisher"},
	} {
		_, err := p.InsertQuery(test.topic, message.Messages{message.NewMessage("good", []byte(`{"destination_topic": "t"}`)), test.msg}[min(1, len(test.topic)):])
		if !errors.Is(err, outbox.ErrInvalid) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestAutoInitializeSchemaMakesNoTablesButWantsOncemills(t *testing.T) {
	t.Parallel()
	const odd = `o"d'd`
	initialize := func(t *testing.T, db *stdsql.DB, name string) error {
		p, err := sql.NewPublisher(db, sql.PublisherConfig{SchemaAdapter: watermillsql.Schema{Schema: name}, AutoInitializeSchema: true}, watermill.NopLogger{})
		must(t, err)
		return p.Publish("t", message.NewMessage("u", nil))
	}
	for _, name := range []string{"", odd} {
		db := testenv.Open(t, testenv.EmptyPostgresURL(t))
		tables := func() int {
			return value[int](t, db, `SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')`)
		}
		if err := initialize(t, db, name); err == nil || !strings.Contains(err.Error(), "oncemill migrate") || strings.Contains(err.Error(), odd) != (name == odd) || tables() != 0 {
			t.Errorf("%q: %d tables: %v", name, tables(), err)
		}
		must(t, oncemill.Migrate(t.Context(), db, name))
		before := tables()
		if err := initialize(t, db, name); err != nil || tables() != before {
			t.Errorf("%q: %d tables, there were %d: %v", name, tables(), before, err)
		}
	}
	db := testenv.DB(t)
	exec(t, db, `INSERT INTO oncemill.schema_version VALUES (1000)`)
	if err := initialize(t, db, ""); err == nil || !strings.Contains(err.Error(), "1000") {
		t.Errorf("too new: %v", err)
	}
}

func TestASubscriberOnTheOutboxIsToldToRunARelay(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	must(t, publisher(t, db, watermillsql.Schema{}).Publish("t", message.NewMessage("u", nil)))
	var log logbook
	s, err := sql.NewSubscriber(db, sql.SubscriberConfig{
		SchemaAdapter: watermillsql.Schema{}, OffsetsAdapter: sql.DefaultPostgreSQLOffsetsAdapter{}, InitializeSchema: true,
	}, watermill.NewSlogLogger(slog.New(slog.NewTextHandler(&log, nil))))
	must(t, err)
	_, err = s.Subscribe(t.Context(), "t")
	must(t, err)
	log.await(t, "oncemill relay")
	must(t, s.Close())
	if n := value[int](t, db, `SELECT count(*) FROM oncemill.outbox`); n != 1 {
		t.Errorf("%d messages in the outbox", n)
	}
	if _, err := (watermillsql.Schema{}).UnmarshalMessage(nil); !errors.Is(err, watermillsql.ErrNoSubscriber) {
		t.Error(err)
	}
}

// One line is changed, and the forwarder's publisher is still around the other.
func TestMessagesInEnvelopesAreStoredForTheTopicsThatTheyAreMeantFor(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	tx, err := db.Begin()
	must(t, err)
	defer tx.Rollback()
	wrap := func(adapter watermillsql.Schema) message.Publisher {
		return forwarder.NewPublisher(publisher(t, tx, adapter), forwarder.PublisherConfig{ForwarderTopic: topic})
	}
	text := func() []*message.Message {
		msg := message.NewMessage("u", []byte("p"))
		msg.Metadata.Set(outbox.OrderingKeyMetadata, "order-7")
		msg.Metadata.Set("a", "b")
		return []*message.Message{msg, message.NewMessage("", nil)}
	}
	must(t, outbox.InTx(tx).Publish("want", text()...))
	must(t, wrap(watermillsql.Schema{ForwarderTopic: topic}).Publish("orders", text()...))
	must(t, wrap(watermillsql.Schema{}).Publish("left-in", text()...))
	must(t, tx.Commit())
	same(t, "unwrapped", rows(t, db, storedSQL, "orders"), rows(t, db, storedSQL, "want"))
	// Without ForwarderTopic an envelope is a message like others.
	if n := value[int](t, db, `SELECT count(*) FROM oncemill.outbox WHERE topic = $1 AND convert_from(payload, 'UTF8')::json ->> 'destination_topic' = 'left-in'`, topic); n != 2 {
		t.Errorf("%d envelopes", n)
	}
}
