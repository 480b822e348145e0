package outbox_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

// Everything that goes to the database and comes back does so with each driver,
// in each of the ways that they pass arguments.
func TestDrivers(t *testing.T) {
	t.Parallel()
	eachDriver(t, testDriver)
}

func eachDriver(t *testing.T, run func(t *testing.T, db *sql.DB, address string)) {
	t.Helper()
	for name, test := range map[string]struct{ driver, parameter, value string }{
		"pq":                  {"postgres", "", ""},
		"pq binary":           {"postgres", "binary_parameters", "yes"},
		"pgx":                 {"pgx", "", ""},
		"pgx exec":            {"pgx", "default_query_exec_mode", "exec"},
		"pgx describe exec":   {"pgx", "default_query_exec_mode", "describe_exec"},
		"pgx cache describe":  {"pgx", "default_query_exec_mode", "cache_describe"},
		"pgx simple protocol": {"pgx", "default_query_exec_mode", "simple_protocol"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := testenv.PostgresURL(t)
			db := openWith(t, test.driver, address, test.parameter, test.value)
			run(t, db, address)
		})
	}
}

func openWith(t *testing.T, driver, address, parameter, value string) *sql.DB {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	if parameter != "" {
		query := u.Query()
		query.Set(parameter, value)
		u.RawQuery = query.Encode()
	}
	db, err := sql.Open(driver, u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func testDriver(t *testing.T, db *sql.DB, address string) {
	payload := []byte("\x00\x01'\\\xff \\x41")
	p := &outbox.Publisher{DB: db, Notify: db}
	err := inTx(t, db, func(ctx context.Context) error {
		msgs := make([]*message.Message, 5)
		for i := range msgs {
			msgs[i] = message.NewMessageWithContext(ctx, fmt.Sprintf("'%d\\", i), payload)
			msgs[i].Metadata.Set("key'\\", "v\x00")
		}
		return p.Publish("to'pic", msgs...)
	})
	if err != nil {
		t.Fatal(err)
	}
	sink := newRecorder(func(row outbox.Row) error {
		switch row.UUID {
		case `'1\`:
			return fmt.Errorf("%w: it's \\ odd", outbox.ErrRefused)
		case `'2\`:
			return errors.New("later")
		}
		return nil
	})
	relay := start(t, &outbox.Relay{DB: db, Sink: sink, ListenURL: address})
	if sum := relay.settled(t, 5); sum.Published != 3 || sum.Parked != 1 || sum.Deferred != 1 {
		t.Errorf("batches are %+v", sum)
	}
	row := sink.next(t)
	if row.Topic != "to'pic" || row.UUID != `'0\` || !bytes.Equal(row.Payload, payload) || row.Metadata["key'\\"] != "v\x00" || len(row.DedupID) != 36 {
		t.Errorf("row is %+v", row)
	}
	if got := value[string](t, db, `SELECT last_error FROM oncemill.outbox WHERE parked_at IS NOT NULL`); got != `message refused: it's \ odd` {
		t.Errorf("error is %q", got)
	}
	if err := p.Publish("alone", message.NewMessage("", nil)); err != nil {
		t.Fatal(err)
	}
	relay.settled(t, 1)
}
