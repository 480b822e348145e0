package oncetest

import (
	"context"
	"database/sql"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/dbcheck"
	"github.com/oncemill/oncemill/internal/metadata"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/schema"
)

// Handled is what a handler has done with one message.
type Handled struct {
	// Returned are the messages that it returned, which Once would write to the outbox,
	// and Err is its error.
	Returned []*message.Message
	Err      error

	// Published are the messages that it wrote to the outbox, in their order, and then those
	// that are to be sent later. If Postgres has aborted the transaction, there are none.
	Published []Sent

	// Tx is the transaction in which it ran, to look at its rows. It is rolled back at the
	// end of the test.
	Tx *sql.Tx
}

// Handle runs a handler once with a message, in a transaction that it finds in the message's
// context, as behind middleware.Once, and that is rolled back at the end of the test. There
// is no claim, and what it returns is not written. The database has Oncemill's tables, in
// the schema "oncemill", and those of the handler. oncemill.Tx.Raw is not available.
func Handle(t testing.TB, db *sql.DB, h message.HandlerFunc, msg *message.Message) *Handled {
	t.Helper()
	ctx := context.WithoutCancel(msg.Context()) // Cleanup comes after the end of t.Context
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		t.Fatalf("oncetest: begin a transaction: %v", err)
	}
	t.Cleanup(func() { _ = tx.Rollback() })
	before, err := lastIDs(ctx, tx)
	if err != nil {
		t.Fatalf("oncetest: read the outbox: %v (run oncemill.Migrate on the test's database)", err)
	}
	own := msg.Copy()
	own.SetContext(oncemill.ContextWithTx(msg.Context(), tx))
	done := &Handled{Tx: tx}
	done.Returned, done.Err = h(own)
	if done.Published, err = published(ctx, tx, before); err != nil && done.Err == nil {
		t.Fatalf("oncetest: the handler returned nil, but its transaction is aborted: return the error of each statement (%v)", err)
	}
	return done
}

// lastIDs returns where the outbox, and what is scheduled, ends.
func lastIDs(ctx context.Context, tx *sql.Tx) (ids map[string]int64, err error) {
	ids = map[string]int64{}
	for _, name := range []string{"outbox", "scheduled"} {
		table := schema.Quote("") + "." + name
		there, err := dbcheck.HasTable(ctx, tx, table)
		if err != nil {
			return nil, err
		}
		if !there && name == "scheduled" { // a schema of version 5 has only one
			continue
		}
		var id int64
		if err := tx.QueryRowContext(ctx, `SELECT COALESCE(max(id), 0) FROM `+table).Scan(&id); err != nil {
			return nil, err
		}
		ids[name] = id
	}
	return ids, nil
}

// published reads what has come to both since.
func published(ctx context.Context, tx *sql.Tx, since map[string]int64) (all []Sent, err error) {
	for _, name := range []string{"outbox", "scheduled"} {
		if id, there := since[name]; there {
			sent, err := readSent(ctx, tx, schema.Quote("")+"."+name, id)
			if err != nil {
				return nil, err
			}
			all = append(all, sent...)
		}
	}
	return all, nil
}

func readSent(ctx context.Context, tx *sql.Tx, table string, since int64) (all []Sent, err error) {
	rows, err := tx.QueryContext(ctx, `SELECT topic, uuid, metadata::text, ordering_key, payload FROM `+table+` WHERE id > $1 ORDER BY id`, since)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var topic, uuid, encoded string
		var orderingKey, payload []byte
		if err := rows.Scan(&topic, &uuid, &encoded, &orderingKey, &payload); err != nil {
			return nil, err
		}
		msg := message.NewMessage(uuid, payload)
		if msg.Metadata, err = metadata.DecodeText(encoded); err != nil {
			return nil, err
		}
		if orderingKey != nil {
			msg.Metadata.Set(outbox.OrderingKeyMetadata, string(orderingKey))
		}
		all = append(all, Sent{topic, msg})
	}
	return all, rows.Err()
}
