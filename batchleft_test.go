package oncemill_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/outbox"
)

// both runs a test with each of the drivers.
func both(t *testing.T, test func(t *testing.T, f *fixture, in *oncemill.Inbox)) {
	t.Helper()
	for _, driver := range []string{"postgres", "pgx"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			test(t, f, &oncemill.Inbox{DB: f.open(driver, f.url)})
		})
	}
}

// execs is a handler that runs statements, and cares about none.
func execs(queries ...string) func(context.Context, oncemill.Tx) error {
	return func(ctx context.Context, tx oncemill.Tx) error {
		for _, query := range queries {
			if _, err := tx.ExecContext(ctx, query); err != nil {
				return err
			}
		}
		return nil
	}
}

// A handler whose last query has rows left commits, alone; the others must not feel it.
func TestOpenRowsOfOneMemberDoNotHarmTheOthers(t *testing.T) {
	t.Parallel()
	const query = `SELECT generate_series(1, 10000)`
	for name, leave := range map[string]func(context.Context, oncemill.Tx) error{
		"rows": func(ctx context.Context, tx oncemill.Tx) error {
			_, err := tx.QueryContext(ctx, query) //nolint:sqlclosecheck,rowserrcheck // on purpose
			return err
		},
		"rows begun": func(ctx context.Context, tx oncemill.Tx) error {
			rows, err := tx.QueryContext(context.WithoutCancel(ctx), query) //nolint:sqlclosecheck,rowserrcheck // on purpose
			if err == nil {
				rows.Next()
			}
			return err
		},
		"row": func(ctx context.Context, tx oncemill.Tx) error {
			return tx.QueryRowContext(ctx, query).Err()
		},
		"rows, and a statement that is not sent": func(ctx context.Context, tx oncemill.Tx) error {
			_, err := tx.QueryContext(ctx, query) //nolint:sqlclosecheck,rowserrcheck // on purpose
			ended, cancel := context.WithCancel(ctx)
			cancel()
			_, _ = tx.ExecContext(ended, `SELECT 1`)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			both(t, func(t *testing.T, f *fixture, in *oncemill.Inbox) {
				b := newBatched(f, in)
				b.effects("a")
				b.add(within(t), "b", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
					must(t, effect("b")(ctx, tx))
					return leave(ctx, tx)
				})
				b.effects("c")
				must(t, errors.Join(b.run()...))
				b.wantOneEach("a", "b", "c")
			})
		})
	}
}

// Of a statement that a handler has prepared, nobody knows if its rows are open. If so, the
// others feel it once.
func TestOpenRowsOfAStatementHarmTheOthersOnce(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, f *fixture, in *oncemill.Inbox) {
		b := newBatched(f, in)
		for range 2 {
			b.effects("a")
			b.add(within(t), "b", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
				must(t, effect("b")(ctx, tx))
				stmt, err := tx.PrepareContext(ctx, `SELECT generate_series(1, 10000)`) //nolint:sqlclosecheck // on purpose
				if err == nil {
					_, err = stmt.QueryContext(ctx) //nolint:sqlclosecheck,rowserrcheck // on purpose
				}
				return err
			})
			b.effects("c")
			for _, err := range b.run() {
				if err != nil {
					want(t, err, oncemill.ErrUnavailable)
				}
			}
			b.shut()
		}
		must(t, errors.Join(b.run()...))
		b.wantOneEach("a", "b", "c")
	})
}

// What one turn has prepared, nobody uses in another.
func TestAPreparedStatementEndsWithItsTurn(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, f *fixture, in *oncemill.Inbox) {
		b := newBatched(f, in)
		var prepared, own *sql.Stmt
		onDB, err := in.DB.Prepare(`INSERT INTO effects VALUES ('kept')`)
		must(t, err)
		defer onDB.Close()
		b.add(within(t), "a", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) (err error) {
			own = tx.StmtContext(ctx, onDB)
			prepared, err = tx.PrepareContext(ctx, `INSERT INTO effects VALUES ('kept')`)
			return errors.Join(err, effect("a")(ctx, tx))
		})
		b.add(within(t), "b", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
			for _, stmt := range []*sql.Stmt{prepared, own} {
				if _, err := stmt.ExecContext(ctx); err == nil {
					t.Error("the statement of another turn was executed")
				}
			}
			return effect("b")(ctx, tx)
		})
		must(t, errors.Join(b.run()...))
		b.wantOneEach("a", "b")
		b.wantEffects("kept", 0)
	})
}

// A savepoint that was not set is nobody's.
func TestASavepointThatWasNotSet(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]func(ctx context.Context, tx oncemill.Tx){
		"not sent": func(ctx context.Context, tx oncemill.Tx) {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			_, _ = tx.ExecContext(ctx, `SAVEPOINT s`)
		},
		"only prepared": func(ctx context.Context, tx oncemill.Tx) {
			_, _ = tx.PrepareContext(ctx, `SAVEPOINT s`) //nolint:sqlclosecheck // on purpose
		},
		"released": func(ctx context.Context, tx oncemill.Tx) {
			_, _ = tx.ExecContext(ctx, `SAVEPOINT s`)
			back, err := tx.PrepareContext(ctx, `ROLLBACK TO s`)
			_, _ = tx.ExecContext(ctx, `RELEASE s`)
			if err == nil {
				_, _ = back.ExecContext(ctx)
			}
		},
		"of another name": func(ctx context.Context, tx oncemill.Tx) {
			_, _ = tx.ExecContext(ctx, `SAVEPOINT u`)
			_, _ = tx.ExecContext(ctx, `ROLLBACK TO U&"\0073"`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBatched(newFixture(t), &oncemill.Inbox{})
			b.add(within(t), "a", oncemill.ClaimOptions{}, execs(`SAVEPOINT s`, `INSERT INTO effects VALUES ('a')`))
			b.add(within(t), "b", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
				set(ctx, tx)
				_, _ = tx.ExecContext(ctx, `ROLLBACK TO s`)
				return effect("b")(ctx, tx)
			})
			errs := b.run()
			must(t, errs[0])
			b.wantOneEach("a")
		})
	}
}

// What a handler sets for its transaction, the next one must not find.
func TestSettingsOfOneMemberAreNotTheNexts(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]string{
		"SET LOCAL":  `SET LOCAL app.tenant = 'a'`,
		"set_config": `SELECT set_config('app.tenant', 'a', true)`,
		"in a CTE":   `WITH x AS (SELECT pg_catalog.SET_CONFIG('app.tenant', 'a', true)) SELECT * FROM x`,
		"several":    `SELECT 1; SET LOCAL app.tenant = 'a'`,
		"DO":         `DO $$ BEGIN SET LOCAL app.tenant = 'a'; END $$`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBatched(newFixture(t), &oncemill.Inbox{})
			b.add(within(t), "a", oncemill.ClaimOptions{}, execs(set, `INSERT INTO effects VALUES ('a')`))
			b.add(within(t), "b", oncemill.ClaimOptions{}, execs(`INSERT INTO effects SELECT 'b'||coalesce(current_setting('app.tenant', true), '')`))
			must(t, errors.Join(b.run()...))
			b.wantOneEach("a", "b")
		})
	}
}

// What a handler keeps until its transaction ends, the next one must not find.
func TestTemporaryTablesOfOneMemberAreNotTheNexts(t *testing.T) {
	t.Parallel()
	b := newBatched(newFixture(t), &oncemill.Inbox{})
	for _, name := range []string{"a", "b", "c"} {
		b.add(within(t), name, oncemill.ClaimOptions{}, execs(
			`CREATE TEMP TABLE IF NOT EXISTS work (name text) ON COMMIT DROP`,
			`INSERT INTO work VALUES ('`+name+`')`,
			`INSERT INTO effects SELECT name FROM work`))
	}
	must(t, errors.Join(b.run()...))
	b.wantOneEach("a", "b", "c")
}

// What was published behind a savepoint is undone with it.
func TestWhatIsRolledBackToASavepointIsNotPublished(t *testing.T) {
	t.Parallel()
	b := newBatched(newFixture(t), &oncemill.Inbox{})
	p := &outbox.Publisher{}
	publish := func(ctx context.Context, uuid string) {
		must(t, p.Publish("topic", message.NewMessageWithContext(ctx, uuid, nil)))
	}
	b.add(within(t), "a", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
		publish(ctx, "1")
		if err := execs(`SAVEPOINT s`)(ctx, tx); err != nil {
			return err
		}
		publish(ctx, "2")
		if err := execs(`ROLLBACK TO s`)(ctx, tx); err != nil {
			return err
		}
		publish(ctx, "3")
		return effect("a")(ctx, tx)
	})
	b.effects("b")
	must(t, errors.Join(b.run()...))
	b.wantOneEach("a", "b")
	if n := b.count(`SELECT count(*) FROM oncemill.outbox WHERE uuid IN ('1', '3')`); n != 2 {
		t.Errorf("%d messages were published, want 2", n)
	}
	if n := b.count(`SELECT count(*) FROM oncemill.outbox WHERE uuid = '2'`); n != 0 {
		t.Error("what was rolled back is published")
	}
}
