package watermillsql_test

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/outbox/watermillsql"
	"github.com/oncemill/oncemill/schema"
)

func TestDrainMovesMessagesAsTheOutboxWouldHaveThem(t *testing.T) {
	t.Parallel()
	for _, column := range []string{"JSON", "JSONB", "BYTEA"} {
		t.Run(column, func(t *testing.T) {
			t.Parallel()
			eachDriver(t, func(t *testing.T, db *stdsql.DB) {
				o := &old{t: t, db: db, schema: sql.DefaultPostgreSQLSchema{GeneratePayloadType: func(string) string { return column }}}
				must(t, o.subscriber("g").SubscribeInitialize(topic))
				o.subscribed("g")
				// An envelope of JSON has only text in its metadata.
				valid := slices.DeleteFunc(odd(), func(msg *message.Message) bool { return strings.Contains(msg.Metadata.Get("key'\\"), "\xff") })
				for _, msg := range valid {
					delete(msg.Metadata, "key'\\")
				}
				must(t, o.wrapped(db).Publish("orders", valid...))
				tx, err := db.Begin()
				must(t, err)
				must(t, outbox.InTx(tx).Publish("want", valid...))
				must(t, tx.Commit())
				o.moved(o.drain("g"), int64(len(valid)))
				same(t, "outbox", rows(t, db, storedSQL, "orders"), rows(t, db, storedSQL, "want"))
			})
		})
	}
}

func TestDrainBeginsWhereTheGroupIsAndLeavesEverythingElse(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	o := newOld(t, db)
	o.publish("history", 30)
	forwardAll(t, o, "g", 30)
	forwardAll(t, o, "other", 30)
	others := rows(t, db, `SELECT o::text FROM watermill_offsets_events_to_forward AS o WHERE consumer_group <> 'g' ORDER BY 1`)

	o.publish("news", 20)
	forwardAll(t, o, "g", 5)
	pending, err := o.drain("g").Pending(within(t))
	if err != nil || pending.Topics["news"] != 15 || len(pending.Topics) != 1 {
		t.Fatalf("pending: %+v: %v", pending, err)
	}
	d := o.drain("g")
	d.Batch = 7
	o.moved(d, 15)
	same(t, "outbox", o.outbox(), names("news", 20)[5:])
	o.moved(d, 0)

	if o.stored() != 50 {
		t.Errorf("%d messages are left in the table", o.stored())
	}
	same(t, "other groups", rows(t, db, `SELECT o::text FROM watermill_offsets_events_to_forward AS o WHERE consumer_group <> 'g' ORDER BY 1`), others)
	// What a subscriber of the group gets next is what comes next.
	o.publish("late", 1)
	forwardAll(t, o, "g", 1)
	o.moved(d, 0)
}

// forwardAll has a subscriber of a group take so many messages and no more.
func forwardAll(t *testing.T, o *old, group string, n int) {
	t.Helper()
	o.schema.SubscribeBatchSize = 1 // each is acknowledged before the next comes
	defer func() { o.schema.SubscribeBatchSize = 0 }()
	s := o.subscriber(group)
	messages, err := s.Subscribe(within(t), topic)
	must(t, err)
	for range n {
		select {
		case msg := <-messages:
			msg.Ack()
		case <-time.After(patience):
			t.Fatal("no message comes")
		}
	}
	// The next one is there only after the last one was acknowledged in the table.
	if n < o.stored() {
		select {
		case <-messages:
		case <-time.After(100 * time.Millisecond):
		}
	}
	must(t, s.Close())
}

func TestDrainWantsToBeToldWhereAGroupWithoutARowBegins(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	o := newOld(t, db)
	o.subscribed("forwarder's")
	o.subscribed("")
	o.publish("old", 3)
	_, err := o.drain("typo").Run(within(t))
	for _, want := range []string{"'typo'", "'', 'forwarder''s'", "--from-beginning", "--from-now"} {
		if !errors.Is(err, watermillsql.ErrNoGroup) || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %s: %v", want, err)
		}
	}
	if n := value[int](t, db, `SELECT count(*) FROM watermill_offsets_events_to_forward`); n != 2 {
		t.Errorf("%d groups, want those that there were", n)
	}
	fromBeginning := o.drain("all")
	fromBeginning.Start = watermillsql.FromBeginning
	o.moved(fromBeginning, 3)
	o.moved(fromBeginning, 0) // now it has a row
	same(t, "outbox", o.outbox(), names("old", 3))
}

// What a transaction writes that has begun before and ends after is not left out.
func TestFromNowLeavesOutNothingThatIsInFlight(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	o := newOld(t, db)
	o.publish("old", 3)
	// Transactions of other tests, in other databases, hold messages up too.
	poll(t, func() bool {
		return value[bool](t, db, `SELECT max(transaction_id::text::bigint) < pg_snapshot_xmin(pg_current_snapshot())::text::bigint FROM watermill_events_to_forward`)
	}, func() string { return "an older transaction does not end" })
	tx, err := db.Begin()
	must(t, err)
	defer tx.Rollback()
	must(t, o.wrapped(tx).Publish("in-flight", message.NewMessage("in-flight-0", nil)))
	d := o.drain("g")
	d.Start = watermillsql.FromNow
	pending, err := d.Pending(within(t))
	if err != nil || len(pending.Topics) != 0 {
		t.Errorf("pending: %+v: %v", pending, err)
	}
	o.moved(d, 0)
	must(t, tx.Commit())
	o.publish("new", 1)
	o.moved(d, 2)
	same(t, "outbox", o.outbox(), []string{"in-flight-0", "new-0"})
}

func TestDrainLeavesOutNoMessageThatIsCommittedLate(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	o := newOld(t, db)
	o.subscribed("g")
	o.publish("a", 1)
	early, err := db.Begin()
	must(t, err)
	defer early.Rollback()
	must(t, o.wrapped(early).Publish("b", message.NewMessage("b-0", nil)))
	o.publish("c", 1) // committed before the one that has begun before it

	var log logbook
	d := o.drain("g")
	d.Logger = log.Logger()
	ended := make(chan error, 1)
	go func() {
		_, err := d.Run(within(t))
		ended <- err
	}()
	poll(t, func() bool { return slices.Contains(o.outbox(), "a-0") }, log.String)
	log.await(t, "wait for an older transaction")
	log.await(t, "process ") // of this test or another
	if got := o.outbox(); slices.Contains(got, "c-0") {
		t.Errorf("moved too early: %v", got)
	}
	must(t, early.Commit())
	must(t, <-ended)
	same(t, "outbox", o.outbox(), []string{"a-0", "b-0", "c-0"})
}

// Transaction 9 is before 10, as a number and not as a text.
func TestDrainKeepsTheOrderOfTransactionsWhateverTheirDigits(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	o := newOld(t, db)
	o.subscribed("g")
	var want []string
	for _, id := range []int{8, 9, 10, 11, 99, 100, 101} {
		for i := range 3 {
			uuid := fmt.Sprintf("%d-%d", id, i)
			exec(t, db, `INSERT INTO watermill_events_to_forward (uuid, payload, transaction_id)
				VALUES ($1::text, json_build_object('destination_topic', 't', 'uuid', $1::text), $2::text::xid8)`, uuid, fmt.Sprint(id))
			want = append(want, uuid)
		}
	}
	pending, err := o.drain("g").Pending(within(t))
	if err != nil || pending.Topics["t"] != int64(len(want)) {
		t.Errorf("pending: %+v: %v", pending, err)
	}
	d := o.drain("g")
	d.Batch = 2
	o.moved(d, int64(len(want)))
	same(t, "outbox", o.outbox(), want)
}

func TestDrainStopsAtWhatIsNoEnvelopeOrParksIt(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	o := newOld(t, db)
	o.subscribed("g")
	o.publish("a", 2)
	bare := message.NewMessage("bare", []byte(`{"order": 7}`))
	bare.Metadata.Set("tenant", "acme")
	must(t, o.plain(db).Publish(topic, bare))
	o.publish("b", 2)
	exec(t, db, `INSERT INTO watermill_events_to_forward (uuid, payload, metadata, transaction_id) VALUES ('odd', '[1]', '[2]', pg_current_xact_id()), ('null', NULL, NULL, pg_current_xact_id())`)
	o.publish("c", 1)
	must(t, o.wrapped(db).Publish("t\x00", message.NewMessage("nul", nil)))

	done, err := o.drain("g").Run(within(t))
	var failed *watermillsql.MessageError
	if !errors.As(err, &failed) || !errors.Is(err, watermillsql.ErrNoEnvelope) || done.Moved != 2 || failed.UUID != "bare" || failed.Position.Offset != 3 ||
		!strings.Contains(err.Error(), "offset 3 of transaction "+failed.Position.Transaction+" in public.watermill_events_to_forward") || !strings.Contains(err.Error(), "--park") {
		t.Fatalf("%+v: %v", done, err)
	}
	if done, err := o.drain("g").Run(within(t)); err == nil || done.Moved != 0 {
		t.Errorf("again: %+v: %v", done, err)
	}
	pending, err := o.drain("g").Pending(within(t))
	if err != nil || pending.Bad != 4 || pending.First.UUID != "bare" || pending.Topics["b"] != 2 || pending.Topics["c"] != 1 {
		t.Errorf("pending: %+v: %v", pending, err)
	}

	d := o.drain("g")
	d.Park = true
	done, err = d.Run(within(t))
	if err != nil || done.Moved != 7 || done.Parked != 4 {
		t.Fatalf("%+v: %v", done, err)
	}
	same(t, "outbox", o.outbox(), []string{"a-0", "a-1", "bare", "b-0", "b-1", "odd", "null", "c-0", value[string](t, db, `SELECT uuid FROM watermill_events_to_forward ORDER BY "offset" DESC LIMIT 1`)})
	same(t, "parked", rows(t, db, `SELECT concat_ws('|', topic, metadata, coalesce(convert_from(payload, 'UTF8'), 'NULL'), attempts) FROM oncemill.outbox
		WHERE parked_at IS NOT NULL AND last_error LIKE 'message "%" at offset % cannot be moved: %' ORDER BY id LIMIT 3`), []string{
		topic + `|{"tenant": "acme"}|{"order": 7}|1`, topic + `|{"watermill-metadata": "[2]"}|[1]|1`, topic + `|{}|NULL|1`})
}

func TestDrainMovesMessagesWithoutEnvelopes(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	o := newOld(t, db)
	o.subscribed("g")
	msg := message.NewMessage("u", []byte(`{"order": 7}`))
	msg.Metadata.Set(outbox.OrderingKeyMetadata, "order-7")
	msg.Metadata.Set("tenant", "acme")
	must(t, o.plain(db).Publish(topic, msg))
	d := o.drain("g")
	d.Plain, d.Park = true, true
	o.moved(d, 1)
	tx, err := db.Begin()
	must(t, err)
	must(t, outbox.InTx(tx).Publish("want", msg))
	must(t, tx.Commit())
	same(t, "outbox", rows(t, db, storedSQL, topic), rows(t, db, storedSQL, "want"))
}

// What is to be sent later goes where it would have gone, and what is parked is kept whole.
func TestDrainSchedulesWhatIsToBeSentLater(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	db := testenv.DB(t)
	o := newOld(t, db)
	o.subscribed("g")
	d := o.drain("g")
	d.Park = true
	publish := func(publisher message.Publisher, topic, uuid, value string) {
		t.Helper()
		msg := message.NewMessage(uuid, []byte("{}"))
		msg.Metadata.Set(outbox.DeliverAfterMetadata, value)
		must(t, publisher.Publish(topic, msg))
	}
	o.publish("a", 2)
	publish(o.wrapped(db), "orders", "later", "24h")
	publish(o.wrapped(db), "orders", "never", "soon")
	publish(o.plain(db), topic, "no-envelope", "24h")
	o.publish("b", 1)
	if done, err := d.Run(within(t)); err != nil || done.Moved != 6 || done.Parked != 2 {
		t.Fatalf("%+v: %v", done, err)
	}
	same(t, "scheduled", rows(t, db, `SELECT concat_ws('|', topic, uuid, metadata, deliver_after BETWEEN now() + interval '23 h' AND now() + interval '24 h') FROM oncemill.scheduled`),
		[]string{"orders|later|{}|t"})
	if n := value[int](t, db, `SELECT count(*) FROM oncemill.outbox WHERE parked_at IS NULL`); n != 3 {
		t.Errorf("%d messages are on their way, want 3", n)
	}
	same(t, "parked", rows(t, db, `SELECT concat_ws('|', metadata, last_error LIKE '%oncemill-deliver-after is "soon": want a time%') FROM oncemill.outbox WHERE parked_at IS NOT NULL ORDER BY id`),
		[]string{`{}|t`, `{"watermill-metadata": "{\"oncemill-deliver-after\":\"24h\"}"}|f`})
}

func TestDrainsBesideEachOtherMoveEachMessageOnce(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	o := newOld(t, db)
	o.subscribed("g")
	const n = 2000
	for i := range 20 {
		o.publish(fmt.Sprint("t", i), n/20)
	}
	want := rows(t, db, `SELECT payload ->> 'uuid' FROM watermill_events_to_forward ORDER BY transaction_id, "offset"`)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			d := o.drain("g")
			d.Batch = 50
			if _, err := d.Run(within(t)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	same(t, "outbox", o.outbox(), want)
}

func TestDrainFollowsWritersThroughLostConnections(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	o := newOld(t, db)
	o.subscribed("g")
	var log logbook
	d := o.drain("g")
	d.Follow, d.Logger = true, log.Logger()
	ctx, stop := context.WithCancel(within(t))
	ended := make(chan error, 1)
	var done watermillsql.Drained
	go func() {
		var err error
		done, err = d.Run(ctx)
		ended <- err
	}()
	log.await(t, "drain begins")
	var want []string
	for i := range 10 {
		to := fmt.Sprint("t", i)
		want = append(want, names(to, 10)...)
		poll(t, func() bool {
			return o.wrapped(db).Publish(to, message.NewMessage(to+"-0", nil)) == nil
		}, log.String)
		msgs := make([]*message.Message, 9)
		for j := range msgs {
			msgs[j] = message.NewMessage(fmt.Sprintf("%s-%d", to, j+1), nil)
		}
		must(t, o.wrapped(db).Publish(to, msgs...))
		exec(t, db, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
	}
	poll(t, func() bool { return len(o.outbox()) >= len(want) }, log.String)
	stop()
	must(t, <-ended)
	same(t, "outbox", o.outbox(), want)
	if done.Position.Offset < 100 {
		t.Errorf("done %+v", done)
	}
}

func TestDrainIsStoppedWithAnErrorThatSaysHowToGoOn(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	o := newOld(t, db)
	o.subscribed("g")
	o.publish("a", 1)
	// The group's row is another's, as that of a forwarder that waits for its broker.
	tx, err := db.Begin()
	must(t, err)
	defer tx.Rollback()
	_, err = tx.Exec(`SELECT FROM watermill_offsets_events_to_forward WHERE consumer_group = 'g' FOR UPDATE`)
	must(t, err)
	ctx, stop := context.WithCancel(within(t))
	ended := make(chan error, 1)
	go func() {
		_, err := o.drain("g").Run(ctx)
		ended <- err
	}()
	poll(t, func() bool {
		return value[int](t, db, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 1
	}, func() string { return "nobody waits for the row" })
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "run it again") {
		t.Error(err)
	}
	must(t, tx.Rollback())
	o.moved(o.drain("g"), 1)
}

func TestTablesThatDrainDoesNotKnowAreNamed(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	drain := func(change func(*watermillsql.Drain)) error {
		d := &watermillsql.Drain{DB: db, Topic: topic, ConsumerGroup: "g"}
		if change != nil {
			change(d)
		}
		return d.Check(within(t))
	}
	want := func(err error, is error, words ...string) {
		t.Helper()
		if err == nil || is != nil && !errors.Is(err, is) {
			t.Errorf("error is %v, want %v", err, is)
		}
		for _, word := range words {
			if err != nil && !strings.Contains(err.Error(), word) {
				t.Errorf("error does not say %s: %v", word, err)
			}
		}
	}
	want(drain(nil), watermillsql.ErrTables, `"watermill_events_to_forward"`, "MessagesTable")
	exec(t, db, `CREATE SCHEMA v1; CREATE TABLE v1.messages ("offset" SERIAL, uuid VARCHAR(36), payload JSON, metadata JSON);
		CREATE TABLE v1.offsets (consumer_group VARCHAR(255) PRIMARY KEY, offset_acked BIGINT, offset_consumed BIGINT NOT NULL)`)
	want(drain(func(d *watermillsql.Drain) { d.MessagesTable = "v1.messages" }), watermillsql.ErrTables, "v1.messages", `"transaction_id"`, "v1")
	o := newOld(t, db)
	want(drain(func(d *watermillsql.Drain) { d.OffsetsTable = "v1.offsets" }), watermillsql.ErrTables, `"last_processed_transaction_id"`)
	want(drain(func(d *watermillsql.Drain) { d.OffsetsTable = `a"b` }), nil, "OffsetsTable")
	want(drain(nil), watermillsql.ErrNoGroup)
	o.subscribed("g")
	must(t, drain(nil))

	want(drain(func(d *watermillsql.Drain) { d.DB = nil }), nil, "Drain.DB")
	want(drain(func(d *watermillsql.Drain) { d.Topic = "" }), nil, "Drain.Topic", "ForwarderTopic")
	want(drain(func(d *watermillsql.Drain) { d.Topic = "a\x00" }), nil, "UTF-8")
	want(drain(func(d *watermillsql.Drain) { d.Batch = -1 }), nil, "Drain.Batch")
	want(drain(func(d *watermillsql.Drain) { d.PollInterval = -1 }), nil, "Drain.PollInterval")
	want(drain(func(d *watermillsql.Drain) { d.Start = 7 }), nil, "Drain.Start")
	want(drain(func(d *watermillsql.Drain) { d.Schema = "nowhere" }), watermillsql.ErrSchema, "oncemill migrate")
}

// A build runs on the schema of the release before it.
func TestSchemaAndDrainRunOnTheOldestSchema(t *testing.T) {
	t.Parallel()
	db := testenv.Open(t, testenv.EmptyPostgresURL(t))
	migrations, err := schema.Under("")
	must(t, err)
	for _, m := range migrations[:schema.Oldest] {
		exec(t, db, m.SQL)
	}
	o := newOld(t, db)
	o.subscribed("g")
	o.publish("a", 2)
	o.moved(o.drain("g"), 2)
	p, err := sql.NewPublisher(db, sql.PublisherConfig{SchemaAdapter: watermillsql.Schema{}, AutoInitializeSchema: true}, watermill.NopLogger{})
	must(t, err)
	must(t, p.Publish("t", message.NewMessage("u", nil)))

	later := message.NewMessage("later", nil)
	outbox.DeliverIn(later, time.Hour)
	must(t, o.wrapped(db).Publish("t", later))
	if _, err := o.drain("g").Run(within(t)); !errors.Is(err, watermillsql.ErrSchema) || !strings.Contains(err.Error(), "from schema version 6 on (run `oncemill migrate`)") {
		t.Errorf("a message that is to be sent later: %v", err)
	}
}

func TestDrainTakesTablesWithNamesOfTheirOwn(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	o := newOld(t, db)
	o.subscribed("g")
	o.publish("a", 2)
	exec(t, db, `CREATE SCHEMA "Old"; ALTER TABLE watermill_events_to_forward SET SCHEMA "Old"; ALTER TABLE "Old".watermill_events_to_forward RENAME TO "my messages"; ALTER TABLE watermill_offsets_events_to_forward RENAME TO offs`)
	d := o.drain("g")
	d.MessagesTable, d.OffsetsTable = `"Old"."my messages"`, "offs"
	o.moved(d, 2)
}

func TestRightsThatDrainLacksAreNamed(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	newOld(t, db).subscribed("g")
	role := testenv.Role(t, db)
	exec(t, db, `GRANT USAGE ON SCHEMA oncemill TO `+role+`; GRANT SELECT ON oncemill.schema_version TO `+role)
	db.SetMaxOpenConns(1)
	as := func() error {
		exec(t, db, `SET ROLE `+role)
		err := (&watermillsql.Drain{DB: db, Topic: topic, ConsumerGroup: "g"}).Check(within(t))
		exec(t, db, `RESET ROLE`)
		return err
	}
	for _, grant := range []string{"GRANT SELECT ON public.watermill_events_to_forward TO", "GRANT SELECT, UPDATE ON public.watermill_offsets_events_to_forward TO", "GRANT INSERT ON oncemill.outbox TO"} {
		err := as()
		if err == nil || !strings.Contains(err.Error(), grant+` "`+role+`"`) {
			t.Errorf("want %s: %v", grant, err)
		}
		exec(t, db, grant+" "+role)
	}
	must(t, as())
}

func TestDrainWorksWithTheGrantsOfTheDocs(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	page, err := os.ReadFile("../../docs/operating.md")
	must(t, err)
	block := regexp.MustCompile("(?s)CREATE ROLE oncemill_drain LOGIN.*?;\n(.*?)```").FindSubmatch(page)
	if block == nil {
		t.Fatal("docs/operating.md has no statements for a drain")
	}
	db := testenv.DB(t)
	o := newOld(t, db)
	o.subscribed("g")
	o.publish("a", 2)
	later := message.NewMessage("later", nil)
	outbox.DeliverIn(later, time.Hour)
	must(t, o.wrapped(db).Publish("b", later))
	role := testenv.Role(t, db)
	exec(t, db, strings.ReplaceAll(string(block[1]), "oncemill_drain", role))
	db.SetMaxOpenConns(1)
	exec(t, db, `SET ROLE `+role)
	for group, start := range map[string]watermillsql.Start{"g": watermillsql.FromGroup, "other": watermillsql.FromBeginning} {
		done, err := (&watermillsql.Drain{DB: db, Topic: topic, ConsumerGroup: group, Start: start}).Run(within(t))
		if err != nil || done.Moved != 3 {
			t.Errorf("group %s: %d messages moved, %v", group, done.Moved, err)
		}
	}
}

func TestDrainWakesRelays(t *testing.T) {
	t.Parallel()
	address := testenv.PostgresURL(t)
	db := testenv.Open(t, address)
	o := newOld(t, db)
	o.subscribed("g")
	published := make(chan outbox.Row, 10)
	relay := &outbox.Relay{DB: db, ListenURL: address, PollInterval: time.Hour, Sink: sink(func(r outbox.Row) { published <- r })}
	ctx, stop := context.WithCancel(within(t))
	ended := make(chan error, 1)
	go func() { ended <- relay.Run(ctx) }()
	poll(t, func() bool { return relay.Ready() == nil }, func() string { return "the relay is not ready" })
	poll(t, func() bool {
		return value[int](t, db, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'`) == 1
	}, func() string { return "the relay does not listen" })
	o.publish("a", 1)
	o.moved(o.drain("g"), 1)
	select {
	case r := <-published:
		if r.UUID != "a-0" {
			t.Errorf("published %+v", r)
		}
	case <-time.After(patience):
		t.Error("the relay does not hear of it")
	}
	stop()
	must(t, <-ended)
}

// A sink acknowledges everything.
type sink func(outbox.Row)

func (s sink) PublishBatch(_ context.Context, rows []outbox.Row) []error {
	for _, r := range rows {
		s(r)
	}
	return make([]error, len(rows))
}
