package oncetest_test

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/oncetest"
	"github.com/oncemill/oncemill/outbox"
)

var publisher = &outbox.Publisher{}

var drivers = []string{"postgres", "pgx"}

// Nothing is reported of a handler that is safe, and the database is left as it was.
func TestASafeHandlerPasses(t *testing.T) {
	t.Parallel()
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			db := database(t, driver)
			for _, report := range check(t, oncetest.Case{DB: db, Handler: pay, Message: order()}) {
				t.Error(report)
			}
			for query, want := range map[string]int{
				`SELECT count(*) FROM payments`:                     0,
				`SELECT balance FROM accounts WHERE name = 'alice'`: 100,
				`SELECT count(*) FROM oncemill.outbox`:              0,
				`SELECT count(*) FROM oncemill.claims`:              0,
			} {
				if got := count(t, db, query); got != want {
					t.Errorf("%s: %d, want %d", query, got, want)
				}
			}
		})
	}
}

// What Check needs not be told, and does not mind.
func TestOtherSafeHandlersPass(t *testing.T) {
	t.Parallel()
	seen := &oncetest.Broker{}
	for name, c := range map[string]oncetest.Case{
		"no message returned": {Handler: oncetest.Consumer(func(msg *message.Message) error {
			_, err := pay(msg)
			return err
		})},
		"key by metadata": {Handler: pay, Once: middleware.Once{Key: middleware.ByMetadata("customer"), Fingerprint: middleware.PayloadFingerprint}},
		"key by position": {Handler: pay, Once: middleware.Once{Key: middleware.ByPosition}},
		"a savepoint after which it goes on": {Handler: oncetest.Consumer(func(msg *message.Message) error {
			ctx := msg.Context()
			tx, _ := oncemill.TxFromContext(ctx)
			if _, err := tx.ExecContext(ctx, `SAVEPOINT try`); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, `INSERT INTO accounts VALUES ('alice', 0)`); err != nil { // it is there
				if _, err := tx.ExecContext(ctx, `ROLLBACK TO SAVEPOINT try`); err != nil {
					return err
				}
			}
			_, err := tx.ExecContext(ctx, `UPDATE accounts SET balance = balance + 1 WHERE name = 'alice'`)
			return err
		})},
		"goroutines that it waits for": {Handler: oncetest.Consumer(func(msg *message.Message) error {
			errs := make(chan error)
			go func() {
				_, err := pay(msg)
				errs <- err
			}()
			return <-errs
		})},
		"a row deleted": {Handler: oncetest.Consumer(func(msg *message.Message) error {
			tx, _ := oncemill.TxFromContext(msg.Context())
			_, err := tx.ExecContext(msg.Context(), `DELETE FROM accounts WHERE name = 'bob'`)
			return err
		})},
		"a message for later": {Outside: seen.Count, Handler: func(msg *message.Message) ([]*message.Message, error) {
			later := message.NewMessage("", nil)
			outbox.DeliverIn(later, time.Hour)
			return []*message.Message{later}, nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "a message for later" {
				testenv.NeedsSchema(t, 6)
			}
			c.DB, c.Message = database(t, "postgres"), order()
			for _, report := range check(t, c) {
				t.Error(report)
			}
		})
	}
}

// A handler of pgx that works on its own connection.
func TestAHandlerThatUsesRawPasses(t *testing.T) {
	t.Parallel()
	db := database(t, "pgx")
	handler := oncetest.Consumer(func(msg *message.Message) error {
		tx, _ := oncemill.TxFromContext(msg.Context())
		return tx.Raw(func(conn any) error {
			_, err := conn.(*stdlib.Conn).Conn().Exec(msg.Context(), `UPDATE accounts SET balance = balance + 1 WHERE name = 'bob'`)
			return err
		})
	})
	for _, report := range check(t, oncetest.Case{DB: db, Handler: handler, Message: order()}) {
		t.Error(report)
	}
}

// Each kind of handler that is not safe, and what the report of it has to say.
func TestEachKindOfUnsafeHandlerIsCaught(t *testing.T) {
	t.Parallel()
	for name, kind := range map[string]struct {
		handler func(db *sql.DB) message.HandlerFunc
		with    oncetest.Case
		want    []string
	}{
		"writes beside its transaction": {
			handler: func(db *sql.DB) message.HandlerFunc {
				return oncetest.Consumer(func(msg *message.Message) error {
					_, err := db.ExecContext(msg.Context(), `INSERT INTO payments (account, order_id) VALUES ('alice', $1)`, string(msg.Payload))
					return err
				})
			},
			want: []string{"stays although the transaction was rolled back: table payments", "step: the process dies before its COMMIT", "found: 1 row new", "TxFromContext"},
		},
		"has its effect twice": {
			handler: func(db *sql.DB) message.HandlerFunc {
				return func(msg *message.Message) ([]*message.Message, error) {
					if _, err := db.ExecContext(msg.Context(), `INSERT INTO payments (account, order_id) VALUES ('bob', $1)`, string(msg.Payload)); err != nil {
						return nil, err
					}
					return nil, nil
				}
			},
			want: []string{"is another one after a fault: table payments", "the process dies when the handler has returned", "found: 2 rows new; without a fault 1 row new"},
		},
		"is stuck for what it has left": {
			handler: func(db *sql.DB) message.HandlerFunc {
				return oncetest.Consumer(func(msg *message.Message) error {
					_, err := db.ExecContext(msg.Context(), `INSERT INTO accounts VALUES ('carol', 1)`)
					return err
				})
			},
			want: []string{"cannot be handled any more", "step: the process dies before its COMMIT", "accounts_pkey"},
		},
		"publishes beside its transaction": {
			handler: func(db *sql.DB) message.HandlerFunc {
				own := &outbox.Publisher{DB: db}
				return oncetest.Consumer(func(msg *message.Message) error {
					return own.Publish("paid", message.NewMessage("", msg.Payload))
				})
			},
			want: []string{"stays although the transaction was rolled back: table outbox", "step: the process dies before its COMMIT", "NewMessageWithContext"},
		},
		"swallows an error": {
			handler: func(*sql.DB) message.HandlerFunc {
				return oncetest.Consumer(func(msg *message.Message) error {
					tx, _ := oncemill.TxFromContext(msg.Context())
					_, err := tx.ExecContext(msg.Context(), `UPDATE accounts SET balance = balance + 1 WHERE name = 'bob'`)
					_, _ = tx.ExecContext(msg.Context(), `INSERT INTO payments (account, order_id) VALUES ('bob', '1')`)
					return err
				})
			},
			want: []string{"an error was swallowed", "step: Postgres refuses statement 2 of the handler (INSERT INTO payments", "returned nil"},
		},
		"goes on without its effect": {
			handler: func(*sql.DB) message.HandlerFunc {
				return oncetest.Consumer(func(msg *message.Message) error {
					tx, _ := oncemill.TxFromContext(msg.Context())
					if _, err := tx.ExecContext(msg.Context(), `SAVEPOINT try`); err != nil {
						return err
					}
					if _, err := tx.ExecContext(msg.Context(), `UPDATE accounts SET balance = balance + 1 WHERE name = 'bob'`); err != nil {
						_, err := tx.ExecContext(msg.Context(), `ROLLBACK TO SAVEPOINT try`)
						return err
					}
					return nil
				})
			},
			want: []string{"is another one after a fault: table accounts", "step: Postgres refuses statement 2 of the handler (UPDATE accounts", "found: no change; without a fault 1 row changed"},
		},
		"returns nil from an aborted transaction": {
			handler: func(*sql.DB) message.HandlerFunc {
				return oncetest.Consumer(func(msg *message.Message) error {
					tx, _ := oncemill.TxFromContext(msg.Context())
					_, _ = tx.ExecContext(msg.Context(), `INSERT INTO nothing VALUES (1)`)
					return nil
				})
			},
			want: []string{"the handler fails, although nothing went wrong", oncemill.ErrTxAborted.Error()},
		},
		"leaves a goroutine": {
			handler: func(*sql.DB) message.HandlerFunc {
				return oncetest.Consumer(func(msg *message.Message) error {
					tx, _ := oncemill.TxFromContext(msg.Context())
					go func() {
						time.Sleep(20 * time.Millisecond) // after the handler, most likely
						_, _ = tx.ExecContext(context.Background(), `UPDATE accounts SET balance = 0`)
					}()
					return nil
				})
			},
			want: []string{"a goroutine uses the transaction after the handler has returned", "UPDATE accounts SET balance = 0", "wait for"},
		},
		"remembers in memory": {
			handler: func(*sql.DB) message.HandlerFunc {
				seen := map[string]bool{}
				return func(msg *message.Message) ([]*message.Message, error) {
					if seen[msg.UUID] {
						return nil, nil
					}
					seen[msg.UUID] = true
					return pay(msg)
				}
			},
			want: []string{"two runs in which nothing went wrong have different effects: table payments", "found: no change; without a fault 1 row new", "in memory"},
		},
		"adds up in memory": {
			handler: func(*sql.DB) message.HandlerFunc {
				batch, total := "", 0
				return oncetest.Consumer(func(msg *message.Message) error {
					if name := oncemillConsumer(msg); name != batch {
						batch, total = name, 0 // as if it were for one consumer
					}
					total++
					tx, _ := oncemill.TxFromContext(msg.Context())
					_, err := tx.ExecContext(msg.Context(), `UPDATE accounts SET balance = $1 WHERE name = 'bob'`, total)
					return err
				})
			},
			want: []string{"is another one after a fault: table accounts", "the process dies before its COMMIT", "column balance has 2; without a fault 1"},
		},
		"uses a random key": {
			handler: func(*sql.DB) message.HandlerFunc { return pay },
			with:    oncetest.Case{Once: middleware.Once{Key: func(*message.Message) (string, error) { return watermill.NewUUID(), nil }}},
			want:    []string{"not recognised", "found: Key returned", "no random number"},
		},
		"has no key": {
			handler: func(*sql.DB) message.HandlerFunc { return pay },
			with:    oncetest.Case{Once: middleware.Once{Key: middleware.ByMetadata("missing")}},
			want:    []string{"not recognised", "missing"},
		},
		"uses a statement prepared on its pool": {
			handler: func(db *sql.DB) message.HandlerFunc {
				stmt, _ := db.Prepare(`UPDATE accounts SET balance = 1`)
				return oncetest.Consumer(func(msg *message.Message) error {
					tx, _ := oncemill.TxFromContext(msg.Context())
					_, err := tx.StmtContext(msg.Context(), stmt).ExecContext(msg.Context())
					return err
				})
			},
			want: []string{"prepared on its *sql.DB", "run its text through the Tx"},
		},
		"does nothing": {
			handler: func(*sql.DB) message.HandlerFunc {
				return oncetest.Consumer(func(*message.Message) error { return nil })
			},
			want: []string{"no effect"},
		},
		"fails": {
			handler: func(*sql.DB) message.HandlerFunc {
				return oncetest.Consumer(func(*message.Message) error { return errors.New("no funds") })
			},
			want: []string{"the handler fails, although nothing went wrong", "no funds"},
		},
		"panics": {
			handler: func(*sql.DB) message.HandlerFunc {
				return oncetest.Consumer(func(*message.Message) error { panic("no funds") })
			},
			want: []string{"the handler fails, although nothing went wrong", "the handler panicked: no funds"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, driver := range drivers {
				c := kind.with
				c.DB = database(t, driver)
				c.Handler, c.Message = kind.handler(c.DB), order()
				reports := check(t, c)
				wantReport(t, reports, kind.want...)
				for _, report := range reports {
					if strings.HasPrefix(report, "fatal:") {
						t.Error(report)
					}
					t.Log(report)
				}
			}
		})
	}
}

// oncemillConsumer tells one run from another, as no handler could otherwise.
func oncemillConsumer(msg *message.Message) string {
	tx, _ := oncemill.TxFromContext(msg.Context())
	var name string
	_ = tx.QueryRowContext(msg.Context(), `SELECT max(consumer) FROM oncemill.claims WHERE xmin::text = (pg_current_xact_id()::xid)::text AND starts_with(consumer, 'oncetest-')`).Scan(&name)
	return name
}

// A handler that publishes to its broker has what it cannot take back. By the steps at
// which it shows, each step is what it says: only where nothing was committed does the
// handler run again.
func TestAMessageToTheBrokerItselfIsCaughtAtTheStepsAtWhichItIsTooEarly(t *testing.T) {
	t.Parallel()
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			broker := &oncetest.Broker{}
			handler := func(msg *message.Message) ([]*message.Message, error) {
				tx, _ := oncemill.TxFromContext(msg.Context())
				if _, err := tx.ExecContext(msg.Context(), `UPDATE accounts SET balance = balance + 1 WHERE name = 'bob'`); err != nil {
					return nil, err
				}
				return []*message.Message{message.NewMessage("", nil)}, broker.Publish("invoices", message.NewMessage("", msg.Payload))
			}
			reports := check(t, oncetest.Case{DB: database(t, driver), Handler: handler, Message: order(), Outside: broker.Count})
			if len(reports) != 1 {
				t.Fatalf("%d reports, want one:\n%s", len(reports), strings.Join(reports, "\n"))
			}
			wantReport(t, reports, "outside of Postgres does not happen once", "Outside counts 2 effects; without a fault 1", "outbox.Publisher")
			want := []string{
				"Postgres refuses the statement that writes what the handler has returned",
				"in a batch in which another message fails, so that the handler runs again",
				"in a batch: the process dies before its COMMIT",
				"the process dies after the statement that writes what the handler has returned",
				"the process dies before its COMMIT",
				"the process dies before the statement that writes what the handler has returned",
				"the process dies when the handler has returned",
			}
			if got := stepsOf(reports[0]); !slices.Equal(got, want) {
				t.Errorf("it shows at\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// stepsOf returns the steps of a report, without statements, in alphabetical order.
func stepsOf(report string) []string {
	var steps []string
	for line := range strings.Lines(report) {
		if _, step, found := strings.Cut(line, "step: "); found {
			step, _, _ = strings.Cut(step, " (")
			steps = append(steps, strings.TrimSpace(step))
		}
	}
	slices.Sort(steps)
	return steps
}

// What Check cannot work with is named, with the remedy.
func TestAWrongCaseIsNamed(t *testing.T) {
	t.Parallel()
	db := database(t, "postgres")
	small := database(t, "postgres")
	small.SetMaxOpenConns(2)
	bare := database(t, "postgres")
	_, err := bare.Exec(`DROP SCHEMA oncemill CASCADE`)
	must(t, err)
	for want, c := range map[string]oncetest.Case{
		"Case.DB is nil":         {Handler: pay, Message: order()},
		"Case.Handler is nil":    {DB: db, Message: order()},
		"Case.Message is nil":    {DB: db, Handler: pay},
		"SetMaxOpenConns with 8": {DB: small, Handler: pay, Message: order()},
		"oncemill migrate":       {DB: bare, Handler: pay, Message: order()},
	} {
		wantReport(t, check(t, c), "fatal: oncetest: ", want)
	}
}
