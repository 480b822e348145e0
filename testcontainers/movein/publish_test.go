package movein_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers/movein/sqlc/db"
	"github.com/oncemill/oncemill/testcontainers/movein/sqlc/pgxdb"
)

// Each way of publishing writes an order and its message, or neither.

func payWithSQL(ctx context.Context, pool *sql.DB, order string) error {
	tx, err := pool.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, `INSERT INTO orders (id) VALUES ($1)`, order); err != nil {
		return err
	}
	msg := message.NewMessage(watermill.NewUUID(), []byte(`{"order": "`+order+`"}`))
	msg.Metadata.Set(outbox.OrderingKeyMetadata, order)
	if err := outbox.InTx(tx).Publish("orders.paid", msg); err != nil {
		return err
	}
	return tx.Commit()
}

// publishSQL is the row of a message. With pgx, metadata can be a map of strings.
const publishSQL = `INSERT INTO oncemill.outbox (topic, uuid, metadata, ordering_key, payload) VALUES ($1, $2, $3, $4, $5)`

func payWithPgx(ctx context.Context, pool *pgxpool.Pool, order string) error {
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO orders (id) VALUES ($1)`, order); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, publishSQL, "orders.paid", watermill.NewUUID(),
			map[string]string{"tenant": "acme"}, []byte(order), []byte(`{"order": "`+order+`"}`))
		return err
	})
	if err != nil {
		return err
	}
	_, _ = pool.Exec(ctx, `SELECT pg_notify('oncemill_outbox', '')`) // wakes relays, which would poll otherwise
	return nil
}

func payWithPgxBatch(ctx context.Context, pool *pgxpool.Pool, orders []string) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		var batch pgx.Batch
		for _, order := range orders {
			batch.Queue(`INSERT INTO orders (id) VALUES ($1)`, order)
			batch.Queue(publishSQL, "orders.paid", watermill.NewUUID(),
				map[string]string{}, []byte(order), []byte(`{"order": "`+order+`"}`))
		}
		return tx.SendBatch(ctx, &batch).Close()
	})
}

func payWithSqlc(ctx context.Context, pool *sql.DB, order string) error {
	tx, err := pool.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, `INSERT INTO orders (id) VALUES ($1)`, order); err != nil {
		return err
	}
	if err := publishWithSqlc(ctx, tx, order); err != nil {
		return err
	}
	return tx.Commit()
}

func publishWithSqlc(ctx context.Context, tx db.DBTX, order string) error {
	return db.New(tx).PublishMessage(ctx, db.PublishMessageParams{
		Topic: "orders.paid", Uuid: watermill.NewUUID(), Metadata: json.RawMessage(`{}`),
		OrderingKey: []byte(order), Payload: []byte(`{"order": "` + order + `"}`),
	})
}

// In a handler under Once the transaction is oncemill's.
func handleWithSqlc(msg *message.Message) error {
	tx, ok := oncemill.TxFromContext(msg.Context())
	if !ok {
		return oncemill.ErrNoTx
	}
	return publishWithSqlc(msg.Context(), tx, string(msg.Payload))
}

func payWithSqlcAndPgx(ctx context.Context, pool *pgxpool.Pool, order string) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO orders (id) VALUES ($1)`, order); err != nil {
			return err
		}
		return pgxdb.New(tx).PublishMessage(ctx, pgxdb.PublishMessageParams{
			Topic: "orders.paid", Uuid: watermill.NewUUID(), Metadata: []byte(`{}`),
			OrderingKey: []byte(order), Payload: []byte(`{"order": "` + order + `"}`),
		})
	})
}

func TestEveryWayOfPublishingCommitsTheOrderWithItsMessageOrNeither(t *testing.T) {
	t.Parallel()
	s := newSite(t, "orders.paid")
	s.exec(`CREATE TABLE orders (id text PRIMARY KEY)`)
	pool, err := pgxpool.New(within(t), s.dbURL)
	must(t, err)
	t.Cleanup(pool.Close)
	for name, pay := range map[string]func(ctx context.Context, order string) error{
		"sql":       func(ctx context.Context, order string) error { return payWithSQL(ctx, s.db, order) },
		"pgx":       func(ctx context.Context, order string) error { return payWithPgx(ctx, pool, order) },
		"batch":     func(ctx context.Context, order string) error { return payWithPgxBatch(ctx, pool, []string{order}) },
		"sqlc":      func(ctx context.Context, order string) error { return payWithSqlc(ctx, s.db, order) },
		"sqlc, pgx": func(ctx context.Context, order string) error { return payWithSqlcAndPgx(ctx, pool, order) },
	} {
		must(t, pay(within(t), name))
		if err := pay(within(t), name); err == nil { // the order is there already
			t.Errorf("%s: paid twice", name)
		}
		if n := s.count(`SELECT count(*) FROM oncemill.outbox WHERE convert_from(ordering_key, 'UTF8') = $1 AND topic = 'orders.paid' AND uuid <> ''
			AND convert_from(payload, 'UTF8')::json ->> 'order' = $1 AND metadata - 'tenant' = '{}'`, name); n != 1 {
			t.Errorf("%s: %d messages", name, n)
		}
	}
	must(t, payWithPgxBatch(within(t), pool, []string{"a", "b", "c"}))
	if err := payWithPgxBatch(within(t), pool, []string{"d", "a"}); err == nil {
		t.Error("paid twice in a batch")
	}
	if n := s.count(`SELECT count(*) FROM oncemill.outbox`); n != 8 {
		t.Errorf("%d messages, want 8", n)
	}
}

func TestSqlcsQueriesTakeTheTransactionOfOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	inbox := &oncemill.Inbox{DB: s.db}
	for range 2 {
		must(t, inbox.Consumer("c").Once(within(t), "k", func(ctx context.Context, _ oncemill.Tx) error {
			return handleWithSqlc(message.NewMessageWithContext(ctx, "u", []byte("7")))
		}))
	}
	if n := s.count(`SELECT count(*) FROM oncemill.outbox`); n != 1 {
		t.Errorf("%d messages", n)
	}
}

func TestTheGuidesPlainSQLPublishes(t *testing.T) {
	t.Parallel()
	s := newSite(t, "orders.paid")
	s.exec(`CREATE TABLE orders (id text PRIMARY KEY)`)
	s.exec(fromGuide(t, "plain-sql"))
	s.exec(fromGuide(t, "notify"))
	relay := s.start("relay")
	poll(t, "the message is sent", func() bool { return len(s.sent()) == 1 })
	relay.stop()
	msg, err := s.stream.GetMsg(within(t), 1)
	must(t, err)
	if msg.Subject != "orders.paid" || string(msg.Data) != `{"order": 7}` || msg.Header.Get("tenant") != "acme" || msg.Header.Get("oncemill-ordering-key") != "" && msg.Header.Get("oncemill-ordering-key") != "order-7" {
		t.Errorf("%s %q %v", msg.Subject, msg.Data, msg.Header)
	}
}
