package doctor_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/lib/pq"
	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/internal/doctor"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/own"
)

// setting is what a new session has.
func setting(t *testing.T, db *sql.DB, name string) (value string) {
	t.Helper()
	must(t, db.QueryRow(`SELECT current_setting($1)`, name).Scan(&value))
	return value
}

// starting is what an Inbox logs when it starts as a role, in this process.
func starting(t *testing.T, address string) *testenv.Log {
	t.Helper()
	var log testenv.Log
	in := &oncemill.Inbox{DB: open(t, address), Logger: log.Logger()}
	must(t, in.Check(t.Context()))
	return &log
}

func warns(t *testing.T, log *testenv.Log, words ...string) {
	t.Helper()
	for _, word := range words {
		if log.Count(word) != 1 {
			t.Errorf("want one %q in\n%s", word, log.String())
		}
	}
}

// A worker without rights beyond its own is told, once for each server, that a standby may
// lack what it has acknowledged.
func TestAnAsynchronousStandbyIsWarnedOfAtStart(t *testing.T) {
	t.Parallel()
	pair := own.PostgresPair(t, testcontainers.PostgresPairOptions{Volatile: true, Async: true})
	database := testcontainers.DatabaseOn(t, pair.Primary())
	address := asRole(t, database, "worker", doctor.Worker)
	until(t, "the standby is attached", func() (attached bool) {
		must(t, database.DB.QueryRow(`SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'`).Scan(&attached))
		return attached
	})
	log := starting(t, address)
	warns(t, log, `msg="oncemill: 1 standby is attached, all of them asynchronous: synchronous_standby_names is empty" check=standbys`, "one that is promoted may lack what was committed last", "name one in synchronous_standby_names")
	warns(t, log, `msg="oncemill: fsync is off" check=durability`, `msg="oncemill: full_page_writes is off" check=durability`) // the tests' server is so
	if log = starting(t, address); log.String() != "" {
		t.Errorf("it is said twice:\n%s", log)
	}

	// Named, but not this one.
	set := func(value string) {
		execute(t, database.DB, `ALTER SYSTEM SET synchronous_standby_names = '`+value+`'`)
		execute(t, database.DB, `SELECT pg_reload_conf()`)
		until(t, "the setting is there", func() bool { return setting(t, database.DB, "synchronous_standby_names") == value })
	}
	execute(t, database.DB, `GRANT pg_read_all_stats TO worker`)
	execute(t, database.DB, `ALTER ROLE worker SET synchronous_commit = local`)
	set("another")
	log = starting(t, address)
	warns(t, log, `synchronous_standby_names is set, but synchronous_commit is local for role \"worker\"`, "commits do not wait for the standby", "1 of 1 standby is asynchronous", "keep the others out of automatic failover")

	// The standby is in order, the setting is not, and then that is too.
	// Which itself waits for no standby.
	execute(t, database.DB, `SET synchronous_commit = local; ALTER ROLE worker SET synchronous_commit = remote_write`)
	set("standby")
	until(t, "the standby is synchronous", func() (synchronous bool) {
		must(t, database.DB.QueryRow(`SELECT sync_state = 'sync' FROM pg_stat_replication`).Scan(&synchronous))
		return synchronous
	})
	warns(t, starting(t, address), `synchronous_commit is remote_write for role \"worker\"`, "not until it has flushed to its disk")
	execute(t, database.DB, `ALTER ROLE worker RESET synchronous_commit`)
	if log = starting(t, address); log.String() != "" {
		t.Errorf("warnings about what is in order:\n%s", log)
	}

	// What saves the log is no standby: nobody can promote it. It goes by its name.
	set("")
	want(t, look(t, doctor.Postgres{URL: address}), doctor.Warn, "standbys", "1 standby is attached")
	other := open(t, pair.Standby().URL(""))
	to := strings.ReplaceAll(setting(t, other, "primary_conninfo"), "application_name=standby", "application_name=pg_receivewal")
	execute(t, other, `ALTER SYSTEM SET primary_conninfo = `+pq.QuoteLiteral(to))
	execute(t, other, `SELECT pg_reload_conf()`)
	until(t, "it has another name", func() (renamed bool) {
		must(t, database.DB.QueryRow(`SELECT count(*) = 1 FROM pg_stat_replication WHERE application_name = 'pg_receivewal'`).Scan(&renamed))
		return renamed
	})
	want(t, look(t, doctor.Postgres{URL: address}), doctor.OK, "standbys", "none")
}

// A logical subscription reads the log too.
func TestWhatIsNoStandbyIsNotTakenForOne(t *testing.T) {
	t.Parallel()
	server := start(t, testcontainers.PostgresOptions{Settings: map[string]string{"wal_level": "logical"}})
	database := testcontainers.DatabaseOn(t, server)
	address := asRole(t, database, "worker", doctor.Worker)
	second := start(t, testcontainers.PostgresOptions{Volatile: true})
	subscriber := testcontainers.DatabaseOn(t, second)
	execute(t, database.DB, `CREATE PUBLICATION everything FOR ALL TABLES`)
	execute(t, database.DB, `SELECT pg_create_logical_replication_slot('subscription', 'pgoutput')`)
	execute(t, subscriber.DB, fmt.Sprintf(`CREATE SUBSCRIPTION subscription CONNECTION '%s' PUBLICATION everything WITH (create_slot = false, copy_data = false)`, database.URL))
	until(t, "the subscription is there", func() (there bool) {
		must(t, database.DB.QueryRow(`SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'`).Scan(&there))
		return there
	})
	if log := starting(t, address); log.String() != "" {
		t.Errorf("warnings:\n%s", log)
	}
	want(t, look(t, doctor.Postgres{URL: address}), doctor.OK, "standbys", "none")
}

// Where nothing can be lost, nothing is said.
func TestWhereNothingCanBeLostNothingIsWarnedOf(t *testing.T) {
	t.Parallel()
	database := testcontainers.DatabaseOn(t, start(t, testcontainers.PostgresOptions{}))
	conn, err := nats.Connect(cluster(t))
	must(t, err)
	t.Cleanup(conn.Close)
	var log testenv.Log
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	must(t, err)
	handled := make(chan struct{}, 1)
	router.AddConsumerHandler("orders", "orders", &jetstream.Subscriber{Conn: conn, Group: "orders", Logger: log.Logger()}, func(*message.Message) error {
		handled <- struct{}{}
		return nil
	})
	in := &oncemill.Inbox{DB: database.DB, Logger: log.Logger()}
	must(t, consumers.Stack{Once: middleware.Once{Inbox: in}}.Apply(t.Context(), router))
	relay := &outbox.Relay{DB: database.DB, Sink: &jetstream.Sink{Conn: conn, Logger: log.Logger()}, ListenURL: database.URL, Logger: log.Logger()}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- router.Run(ctx) }()
	go func() { ended <- relay.Run(ctx) }()
	must(t, (&outbox.Publisher{DB: database.DB, Notify: database.DB}).Publish("orders", message.NewMessage("1", nil)))
	select {
	case <-handled:
	case <-time.After(patience):
		t.Error("the message does not come")
	}
	stop()
	must(t, errors.Join(<-ended, <-ended))
	if log.Count("check=") > 0 {
		t.Errorf("warnings:\n%s", log.String())
	}
}
