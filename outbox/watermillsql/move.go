package watermillsql

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/internal/dbcheck"
)

// chunkBytes is how many bytes of messages one transaction moves at most, and one message
// more.
const chunkBytes = 16 << 20

// A stored message is a row of the messages table.
type stored struct {
	pos               Position
	uuid              string
	payload, metadata []byte
}

// move moves a batch in one transaction. Waiting for the group's row ends with ctx, the
// rest with work.
//
// READ COMMITTED has the second statement see what was committed while the first one
// waited. A subscriber reads at REPEATABLE READ, and has an error of serialization to
// begin again after.
func (w *work) move(ctx, work context.Context) error {
	tx, err := w.DB.BeginTx(work, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after a commit there is nothing left to roll back
	if _, err := tx.ExecContext(work, `SET LOCAL idle_in_transaction_session_timeout = '`+idleTimeout+`'`); err != nil {
		return err
	}
	pos, found, err := w.position(ctx, tx, ` FOR UPDATE`)
	if err != nil {
		return err
	}
	if !found {
		return w.noGroup(ctx)
	}
	msgs, err := w.read(work, tx, pos)
	if err != nil || len(msgs) == 0 { // another one was quicker
		return err
	}
	rows, parked, bad := w.rows(msgs)
	if len(rows) == 0 {
		return bad
	}
	last := msgs[len(rows)-1].pos
	if err := w.write(work, tx, rows, last); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit (it may have succeeded; the next attempt finds out): %w", err)
	}
	w.done.Moved += int64(len(rows))
	w.done.Parked += int64(len(parked))
	w.done.Position = last
	for _, err := range parked {
		w.logger.WarnContext(work, "watermillsql: drain: a message is parked", "error", err)
	}
	w.wake(work)
	return bad
}

// read returns the next messages, in the subscriber's order. Those of transactions that
// others have begun before, and not ended, are left for later: what those write would
// come before them, and would be skipped. The order is that of the column, and not of its
// text, which has the same name in the result: hence the m.
func (w *work) read(ctx context.Context, tx *sql.Tx, after Position) (msgs []stored, err error) {
	rows, err := tx.QueryContext(ctx, `
SELECT m.transaction_id::text, m."offset", m.uuid, m.payload, m.metadata FROM `+w.messages+` AS m
WHERE (m.transaction_id, m."offset") > ($1::text::xid8, $2::bigint) AND m.transaction_id < pg_snapshot_xmin(pg_current_snapshot())
ORDER BY m.transaction_id, m."offset" LIMIT $3`, after.Transaction, after.Offset, w.batch())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for bytes := 0; bytes < chunkBytes && rows.Next(); {
		var m stored
		if err := rows.Scan(&m.pos.Transaction, &m.pos.Offset, &m.uuid, &m.payload, &m.metadata); err != nil {
			return nil, err
		}
		bytes += len(m.payload) + len(m.metadata)
		msgs = append(msgs, m)
	}
	return msgs, errors.Join(rows.Err(), rows.Close())
}

// rows returns what msgs are in the outbox. With Park those that cannot be moved are
// among them, and in parked; without, it ends before the first of them, which is bad.
func (w *work) rows(msgs []stored) (rows []row, parked []*MessageError, bad error) {
	for _, m := range msgs {
		r, err := w.row(m)
		if err != nil {
			failed := &MessageError{Table: w.messages, UUID: m.uuid, Position: m.pos, Err: err}
			if !w.Park {
				return rows, parked, failed
			}
			parked = append(parked, failed)
			r = w.parkedRow(m, failed)
		}
		rows = append(rows, r)
	}
	return rows, parked, nil
}

func (w *work) row(m stored) (row, error) {
	if w.Plain {
		msg, err := m.message()
		if err != nil {
			return row{}, err
		}
		return encode(w.Topic, msg)
	}
	topic, msg, err := unwrap(m.payload, w.marshaler)
	if err != nil {
		return row{}, fmt.Errorf("%w (Drain.Plain, or --plain, is for messages without; Park, or --park, puts those that are none into the outbox as parked rows)", err)
	}
	return encode(topic, msg)
}

// message reads a message as watermill-sql does.
func (m stored) message() (*message.Message, error) {
	msg := message.NewMessage(m.uuid, m.payload)
	if m.metadata != nil {
		if err := json.Unmarshal(m.metadata, &msg.Metadata); err != nil {
			return nil, fmt.Errorf("%w: its metadata is not an object of strings: %w", errInvalid, err)
		}
	}
	return msg, nil
}

// parkedRow keeps all that there is of a message. Metadata that cannot be stored goes into
// an entry.
func (w *work) parkedRow(m stored, why error) row {
	msg, err := m.message()
	var r row
	if err == nil {
		r, err = encode(w.Topic, msg)
	}
	if err != nil || r.due != nil { // what is parked is not scheduled
		msg = message.NewMessage(m.uuid, m.payload)
		msg.Metadata.Set("watermill-metadata", string(m.metadata))
	}
	r, err = encode(w.Topic, msg)
	if err != nil { // not possible: topic and uuid are text, since Postgres had them
		panic(err)
	}
	r.parked = strings.ToValidUTF8(strings.ReplaceAll(why.Error(), "\x00", "\uFFFD"), "\uFFFD")
	return r
}

// write writes rows to the outbox and moves the group on.
func (w *work) write(ctx context.Context, tx *sql.Tx, rows []row, last Position) error {
	query, args := insertQuery(w.Schema, rows)
	if _, err := tx.ExecContext(ctx, query, args...); err != nil {
		return fmt.Errorf("write to %s: %w", w.outbox(), dbcheck.NoTable(err, 6, "messages can be scheduled"))
	}
	result, err := tx.ExecContext(ctx, `
UPDATE `+w.offsets+` SET offset_acked = $1, last_processed_transaction_id = $2::text::xid8 WHERE consumer_group = $3`,
		last.Offset, last.Transaction, w.ConsumerGroup)
	if err != nil {
		return fmt.Errorf("move group %q on in %s: %w", w.ConsumerGroup, w.offsets, err)
	}
	if n, err := result.RowsAffected(); err != nil || n != 1 {
		return fmt.Errorf("move group %q on in %s: %d rows changed, want 1: %w", w.ConsumerGroup, w.offsets, n, err)
	}
	return nil
}
