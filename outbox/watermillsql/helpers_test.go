package watermillsql_test

import (
	"context"
	stdsql "database/sql"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	_ "github.com/jackc/pgx/v5/stdlib"
	"go.uber.org/goleak"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox/watermillsql"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait for something that should happen soon.
const patience = 30 * time.Second

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func exec(t *testing.T, db *stdsql.DB, query string, args ...any) {
	t.Helper()
	if _, err := db.Exec(query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func value[T any](t *testing.T, db *stdsql.DB, query string, args ...any) (v T) {
	t.Helper()
	if err := db.QueryRow(query, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v
}

// rows are the results of a query for one text column, as lines.
func rows(t *testing.T, db *stdsql.DB, query string, args ...any) (lines []string) {
	t.Helper()
	found, err := db.Query(query, args...)
	must(t, err)
	defer found.Close()
	for found.Next() {
		var line string
		must(t, found.Scan(&line))
		lines = append(lines, line)
	}
	must(t, found.Err())
	return lines
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// eachDriver runs a test with both drivers.
func eachDriver(t *testing.T, test func(t *testing.T, db *stdsql.DB)) {
	for _, driver := range []string{"postgres", "pgx"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			db, err := stdsql.Open(driver, testenv.PostgresURL(t))
			must(t, err)
			t.Cleanup(func() { db.Close() })
			test(t, db)
		})
	}
}

const topic = "events_to_forward"

// An old is a program as it was: it publishes through Watermill's forwarder and
// watermill-sql.
type old struct {
	t      *testing.T
	db     *stdsql.DB
	schema sql.DefaultPostgreSQLSchema
}

// newOld makes the tables as watermill-sql does.
func newOld(t *testing.T, db *stdsql.DB) *old {
	t.Helper()
	o := &old{t: t, db: db}
	must(t, o.subscriber("nobody").SubscribeInitialize(topic))
	return o
}

func (o *old) subscriber(group string) *sql.Subscriber {
	o.t.Helper()
	s, err := sql.NewSubscriber(o.db, sql.SubscriberConfig{
		ConsumerGroup: group, SchemaAdapter: o.schema, OffsetsAdapter: sql.DefaultPostgreSQLOffsetsAdapter{},
		PollInterval: 10 * time.Millisecond, RetryInterval: 10 * time.Millisecond,
	}, watermill.NopLogger{})
	must(o.t, err)
	return s
}

// wrapped is what programs publish with.
func (o *old) wrapped(tx sql.ContextExecutor) message.Publisher {
	return forwarder.NewPublisher(o.plain(tx), forwarder.PublisherConfig{ForwarderTopic: topic})
}

func (o *old) plain(tx sql.ContextExecutor) message.Publisher {
	o.t.Helper()
	p, err := sql.NewPublisher(tx, sql.PublisherConfig{SchemaAdapter: o.schema}, watermill.NopLogger{})
	must(o.t, err)
	return p
}

// publish publishes so many messages for a topic, in one transaction.
func (o *old) publish(to string, n int) {
	o.t.Helper()
	msgs := make([]*message.Message, n)
	for i := range msgs {
		msgs[i] = message.NewMessage(fmt.Sprintf("%s-%d", to, i), []byte("payload"))
	}
	must(o.t, o.wrapped(o.db).Publish(to, msgs...))
}

// subscribed gives a group its row, as a Subscriber does.
func (o *old) subscribed(group string) {
	o.t.Helper()
	for _, q := range (sql.DefaultPostgreSQLOffsetsAdapter{}).BeforeSubscribingQueries(topic, group) {
		exec(o.t, o.db, q.Query, q.Args...)
	}
}

func (o *old) stored() int {
	o.t.Helper()
	return value[int](o.t, o.db, `SELECT count(*) FROM watermill_events_to_forward`)
}

func (o *old) drain(group string) *watermillsql.Drain {
	return &watermillsql.Drain{DB: o.db, Topic: topic, ConsumerGroup: group, Logger: slog.New(slog.DiscardHandler), PollInterval: 10 * time.Millisecond}
}

// moved runs a drain and wants it to move so many messages.
func (o *old) moved(d *watermillsql.Drain, want int64) {
	o.t.Helper()
	done, err := d.Run(within(o.t))
	if err != nil || done.Moved != want {
		o.t.Fatalf("moved %d messages, want %d: %v", done.Moved, want, err)
	}
}

// outbox is the uuids in the outbox, in their order.
func (o *old) outbox() []string {
	o.t.Helper()
	return rows(o.t, o.db, `SELECT uuid FROM oncemill.outbox ORDER BY id`)
}

func names(to string, n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf("%s-%d", to, i))
	}
	return all
}

// A logbook collects what is logged.
type logbook struct{ testenv.Log }

func (l *logbook) await(t *testing.T, words string) {
	t.Helper()
	poll(t, func() bool { return strings.Contains(l.String(), words) }, func() string { return l.String() })
}

// poll waits until done returns true, for what nothing signals.
func poll(t *testing.T, done func() bool, state func() string) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("did not happen: " + state())
		}
	}
}
