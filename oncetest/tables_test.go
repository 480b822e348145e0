package oncetest_test

import (
	"context"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/oncetest"
)

// Rows of all kinds are after a check what they were before: of odd types and names, several
// alike, with triggers and foreign keys, in partitions.
func TestCheckLeavesTheTablesAsTheyWere(t *testing.T) {
	t.Parallel()
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			db := database(t, driver)
			for _, statement := range []string{
				`CREATE SCHEMA "Other"`,
				`CREATE TABLE "Other"."odd ""table""" (t text, "a b" jsonb, c json, d numeric[], e float8, f bytea, g timestamptz, h interval, i accounts, j char(5), k boolean, l int4range, m xml)`,
				`INSERT INTO "Other"."odd ""table""" VALUES
					(E'a\\b"c,\n(', 'null', '{ "x":  1 }', '{1.10,NULL,NaN}', 'Infinity', '\x00ff', 'infinity', '1 mon -1 day', ROW('x', 1, now()), 'ab', true, '[1,5)', NULL),
					('', NULL, NULL, '{{1,2},{3,4}}', 0.1, '', '2026-01-01 00:00:00.123456+02', NULL, NULL, '', NULL, 'empty', NULL),
					(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)`,
				`INSERT INTO "Other"."odd ""table""" (t) SELECT 'twin' FROM generate_series(1, 3)`,
				`CREATE TABLE parts (day int, n int) PARTITION BY RANGE (day)`,
				`CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10)`,
				`CREATE TABLE audit (what text)`,
				`CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO audit VALUES (TG_OP || TG_TABLE_NAME); RETURN NULL; END $$`,
				`CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON payments FOR EACH ROW EXECUTE FUNCTION audit()`,
				`INSERT INTO payments (account, order_id) VALUES ('bob', 'old')`,
			} {
				_, err := db.Exec(statement)
				must(t, err)
			}
			all := `SELECT ('x' || left(md5(string_agg(r, ';' ORDER BY r)), 6))::bit(24)::int FROM (
				SELECT t::text r FROM "Other"."odd ""table""" t UNION ALL SELECT t::text FROM parts t UNION ALL SELECT t::text FROM audit t
				UNION ALL SELECT t::text FROM payments t UNION ALL SELECT t::text FROM accounts t) s`
			before := count(t, db, all)
			handler := oncetest.Consumer(func(msg *message.Message) error {
				tx, _ := oncemill.TxFromContext(msg.Context())
				for _, statement := range []string{
					`DELETE FROM "Other"."odd ""table"""`,
					`INSERT INTO parts VALUES (1, 1)`,
					`UPDATE payments SET order_id = 'new'`,
					`DELETE FROM payments`,
					`DELETE FROM accounts`,
				} {
					if _, err := tx.ExecContext(msg.Context(), statement); err != nil {
						return err
					}
				}
				return nil
			})
			for _, report := range check(t, oncetest.Case{DB: db, Handler: handler, Message: order()}) {
				t.Error(report)
			}
			if after := count(t, db, all); after != before {
				t.Error("the tables are not as they were")
			}
		})
	}
}

// Tables in another schema than "oncemill".
func TestCheckFollowsTheSchemaOfTheInbox(t *testing.T) {
	t.Parallel()
	db := database(t, "postgres")
	must(t, oncemill.Migrate(context.Background(), db, "elsewhere"))
	_, err := db.Exec(`DROP SCHEMA oncemill CASCADE`)
	must(t, err)
	handler := func(msg *message.Message) ([]*message.Message, error) {
		return []*message.Message{message.NewMessage("", nil)}, nil
	}
	c := oncetest.Case{DB: db, Handler: handler, Message: order(), Once: middleware.Once{Inbox: &oncemill.Inbox{DB: db, Schema: "elsewhere"}}}
	for _, report := range check(t, c) {
		t.Error(report)
	}
}

// A user that may not keep triggers out of it is told so, where there are some.
func TestATriggerThatCannotBeKeptOutIsNamed(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "for its role")
	db := database(t, "postgres")
	for _, statement := range []string{
		`CREATE TABLE audit (what text)`,
		`CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO audit VALUES (TG_OP); RETURN NULL; END $$`,
		`CREATE TRIGGER audit AFTER DELETE ON payments FOR EACH ROW EXECUTE FUNCTION audit()`,
	} {
		_, err := db.Exec(statement)
		must(t, err)
	}
	var name string
	must(t, db.QueryRow(`SELECT current_database()`).Scan(&name))
	role := name + "_user"
	for _, statement := range []string{
		`CREATE ROLE ` + role + ` LOGIN PASSWORD 'secret'`,
		`GRANT ALL ON ALL TABLES IN SCHEMA public, oncemill TO ` + role,
		`GRANT USAGE ON SCHEMA oncemill TO ` + role,
		`GRANT ALL ON ALL SEQUENCES IN SCHEMA oncemill TO ` + role,
	} {
		_, err := db.Exec(statement)
		must(t, err)
	}
	t.Cleanup(func() { db.Exec(`DROP OWNED BY ` + role + `; DROP ROLE ` + role) })
	least := as(t, db, role)
	wantReport(t, check(t, oncetest.Case{DB: least, Handler: pay, Message: order()}), "fatal:", "session_replication_role")
}

// A handler that waits for itself does not hang the test.
func TestAHandlerThatWaitsForItselfIsNamed(t *testing.T) {
	t.Parallel()
	db := database(t, "postgres")
	handler := oncetest.Consumer(func(msg *message.Message) error {
		if _, err := pay(msg); err != nil {
			return err
		}
		_, err := db.ExecContext(context.Background(), `UPDATE accounts SET balance = 0 WHERE name = 'alice'`)
		return err
	})
	c := oncetest.Case{DB: db, Handler: handler, Message: order(), Timeout: 500 * time.Millisecond}
	wantReport(t, check(t, c), "fatal:", "Case.Timeout", "for a row that its transaction has changed")
	if n := count(t, db, `SELECT count(*) FROM payments`); n != 0 {
		t.Errorf("%d payments are left", n)
	}
}

// FailNow is for the goroutine of the test, in which no handler runs.
func TestAHandlerThatEndsItsGoroutineIsNamed(t *testing.T) {
	t.Parallel()
	r := &recorder{TB: t}
	handler := oncetest.Consumer(func(*message.Message) error {
		r.Fatalf("as a test would")
		return nil
	})
	wantReport(t, check(t, oncetest.Case{DB: database(t, "postgres"), Handler: handler, Message: order()}), "the handler fails", "t.FailNow")
}
