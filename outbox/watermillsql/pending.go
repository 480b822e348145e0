package watermillsql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// Pending is what a Run would move, as of a moment.
type Pending struct {
	From     Position         // where the group is, or would begin
	Topics   map[string]int64 // messages, by the topics that they go to
	HeldBack int64            // of all these and Bad, those that wait for older transactions to end
	Bad      int64            // messages that cannot be moved
	First    *MessageError    // the first of these, nil if there is none
}

// Pending returns what Run would move. It reads all of it, changes nothing and locks
// nothing. Its errors are those of Check.
func (d *Drain) Pending(ctx context.Context) (Pending, error) {
	w, err := d.open(ctx)
	if err != nil {
		return Pending{}, err
	}
	tx, err := d.DB.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return Pending{}, fmt.Errorf("watermillsql: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // it has written nothing
	p := Pending{Topics: make(map[string]int64)}
	if p.From, err = w.start(ctx, tx); err != nil {
		return Pending{}, err
	}
	if err := w.count(ctx, tx, &p); err != nil {
		return Pending{}, fmt.Errorf("watermillsql: read %s: %w", w.messages, err)
	}
	return p, nil
}

func (w *work) count(ctx context.Context, tx *sql.Tx, p *Pending) error {
	rows, err := tx.QueryContext(ctx, `
SELECT m.transaction_id::text, m."offset", m.uuid, m.payload, m.metadata, m.transaction_id >= pg_snapshot_xmin(pg_current_snapshot())
FROM `+w.messages+` AS m
WHERE (m.transaction_id, m."offset") > ($1::text::xid8, $2::bigint)
ORDER BY m.transaction_id, m."offset"`, p.From.Transaction, p.From.Offset)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var m stored
		var held bool
		if err := rows.Scan(&m.pos.Transaction, &m.pos.Offset, &m.uuid, &m.payload, &m.metadata, &held); err != nil {
			return err
		}
		if held {
			p.HeldBack++
		}
		r, err := w.row(m)
		switch {
		case err == nil:
			p.Topics[r.topic]++
			continue
		case p.First == nil:
			p.First = &MessageError{Table: w.messages, UUID: m.uuid, Position: m.pos, Err: err}
		}
		p.Bad++
	}
	return errors.Join(rows.Err(), rows.Close())
}
