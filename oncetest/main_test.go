package oncetest_test

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	_ "github.com/jackc/pgx/v5/stdlib"
	"go.uber.org/goleak"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/oncetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// database returns a database with tables for handlers, by a driver.
func database(t *testing.T, driver string) *sql.DB {
	t.Helper()
	url := testenv.PostgresURL(t)
	db, err := sql.Open(driver, url)
	must(t, err)
	t.Cleanup(func() { db.Close() })
	for _, statement := range []string{
		`CREATE TABLE accounts (name text PRIMARY KEY, balance bigint NOT NULL, updated_at timestamptz NOT NULL DEFAULT now())`,
		`CREATE TABLE payments (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account text NOT NULL REFERENCES accounts (name),
			order_id text NOT NULL, double bigint GENERATED ALWAYS AS (length(order_id) * 2) STORED, paid_at timestamptz NOT NULL DEFAULT now(), note bytea)`,
		`INSERT INTO accounts VALUES ('alice', 100), ('bob', 0)`,
	} {
		_, err := db.Exec(statement)
		must(t, err)
	}
	return db
}

func order() *message.Message {
	msg := message.NewMessage("order-7", []byte("7"))
	msg.Metadata.Set("customer", "alice")
	return msg
}

// pay is a handler as it should be: it writes through its transaction, publishes through
// the outbox, and returns a message.
func pay(msg *message.Message) ([]*message.Message, error) {
	ctx := msg.Context()
	tx, _ := oncemill.TxFromContext(ctx)
	var balance int
	if err := tx.QueryRowContext(ctx, `UPDATE accounts SET balance = balance - 5, updated_at = clock_timestamp() WHERE name = $1 RETURNING balance`, "alice").Scan(&balance); err != nil {
		return nil, err
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO payments (account, order_id, note) VALUES ('alice', $1, '\x00ff')`, string(msg.Payload)); err != nil {
		return nil, err
	}
	if err := publisher.Publish("paid", message.NewMessageWithContext(ctx, watermill.NewUUID(), msg.Payload)); err != nil {
		return nil, err
	}
	return []*message.Message{message.NewMessage(watermill.NewUUID(), msg.Payload)}, nil
}

// recorder is a testing.TB that keeps what it is told.
type recorder struct {
	testing.TB
	mu     sync.Mutex
	errors []string
	logs   []string
}

func (r *recorder) Helper() {}

func (r *recorder) Error(args ...any) { r.note(&r.errors, fmt.Sprint(args...)) }

func (r *recorder) Logf(format string, args ...any) { r.note(&r.logs, fmt.Sprintf(format, args...)) }

func (r *recorder) Fatalf(format string, args ...any) {
	r.note(&r.errors, "fatal: "+fmt.Sprintf(format, args...))
	runtime.Goexit()
}

func (r *recorder) note(in *[]string, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*in = append(*in, text)
}

// check runs Check, and returns what it has reported.
func check(t *testing.T, c oncetest.Case) (errors []string) {
	t.Helper()
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() { // Fatalf ends it
		defer close(done)
		oncetest.Check(r, c)
	}()
	<-done
	for _, text := range r.logs {
		t.Log(text)
	}
	return r.errors
}

// wantReport wants one of the reports to say all of it.
func wantReport(t *testing.T, reports []string, parts ...string) {
	t.Helper()
	for _, report := range reports {
		all := true
		for _, part := range parts {
			all = all && strings.Contains(report, part)
		}
		if all {
			return
		}
	}
	t.Errorf("no report says all of %q:\n%s", parts, strings.Join(reports, "\n"))
}

func count(t *testing.T, db *sql.DB, query string) (n int) {
	t.Helper()
	must(t, db.QueryRowContext(context.Background(), query).Scan(&n))
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// as opens the database of a pool as another role.
func as(t *testing.T, db *sql.DB, role string) *sql.DB {
	t.Helper()
	var name string
	must(t, db.QueryRow(`SELECT current_database()`).Scan(&name))
	u, err := url.Parse(os.Getenv(testenv.PostgresVariable))
	must(t, err)
	u.Path, u.User = "/"+name, url.UserPassword(role, "secret")
	other, err := sql.Open("postgres", u.String())
	must(t, err)
	t.Cleanup(func() { other.Close() })
	return other
}
