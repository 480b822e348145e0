package watermillsql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
)

// A querier is a *sql.DB or a *sql.Tx.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// position reads how far the group has come. lock is "" or what locks its row.
func (w *work) position(ctx context.Context, db querier, lock string) (pos Position, found bool, err error) {
	err = db.QueryRowContext(ctx, `
SELECT coalesce(offset_acked, 0), last_processed_transaction_id::text FROM `+w.offsets+` WHERE consumer_group = $1`+lock,
		w.ConsumerGroup).Scan(&pos.Offset, &pos.Transaction)
	if errors.Is(err, sql.ErrNoRows) {
		return pos, false, nil
	}
	return pos, err == nil, err
}

// start returns where the group begins, or goes on.
func (w *work) start(ctx context.Context, db querier) (Position, error) {
	pos, found, err := w.position(ctx, db, "")
	switch {
	case err != nil:
		return pos, fmt.Errorf("watermillsql: read %s: %w", w.offsets, err)
	case found:
		return pos, nil
	case w.Start == FromBeginning:
		return Position{Transaction: "0"}, nil
	case w.Start == FromNow:
		return w.now(ctx, db)
	}
	return pos, fmt.Errorf("watermillsql: %w", w.noGroup(ctx))
}

// now is a position behind everything of transactions that have ended, if all before
// them have too. Whatever is committed later comes after it.
func (w *work) now(ctx context.Context, db querier) (pos Position, err error) {
	err = db.QueryRowContext(ctx, `
SELECT before, coalesce((SELECT max("offset") FROM `+w.messages+` WHERE transaction_id = before::xid8), 0)
FROM (SELECT (pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1)::text AS before) AS now`).Scan(&pos.Transaction, &pos.Offset)
	if err != nil {
		err = fmt.Errorf("watermillsql: read %s: %w", w.messages, err)
	}
	return pos, err
}

// begin makes sure that the group has a row, since only what is there can be locked.
func (w *work) begin(ctx context.Context) error {
	pos, found, err := w.position(ctx, w.DB, "")
	if err != nil {
		return fmt.Errorf("watermillsql: read %s: %w", w.offsets, err)
	}
	if !found {
		if pos, err = w.start(ctx, w.DB); err != nil {
			return err
		}
		if _, err := w.DB.ExecContext(ctx, `
INSERT INTO `+w.offsets+` (consumer_group, offset_acked, last_processed_transaction_id) VALUES ($1, $2, $3::text::xid8)
ON CONFLICT DO NOTHING`, w.ConsumerGroup, pos.Offset, pos.Transaction); err != nil { // if there is one by now, that one counts
			return fmt.Errorf("watermillsql: begin group %q in %s: %w", w.ConsumerGroup, w.offsets, err)
		}
	}
	w.done.Position = pos
	w.logger.InfoContext(ctx, "watermillsql: drain begins", "from", w.messages, "to", w.outbox(), "group", w.ConsumerGroup,
		"known", found, "offset", pos.Offset, "transaction", pos.Transaction)
	return nil
}

// noGroup names the groups that there are.
func (w *work) noGroup(ctx context.Context) error {
	var groups sql.NullString
	if err := w.DB.QueryRowContext(ctx, `
SELECT string_agg(quote_literal(consumer_group), ', ' ORDER BY consumer_group) FROM (SELECT consumer_group FROM `+w.offsets+` LIMIT 20) AS first`,
	).Scan(&groups); err != nil {
		return err
	}
	there := "it has no group at all"
	if groups.Valid {
		there = "there are " + groups.String
	}
	return fmt.Errorf("%w: %s has none for '%s' (%s): correct the group, or say whether to begin with the oldest message or with what comes from now on (Drain.Start; on the command line --from-beginning or --from-now)",
		ErrNoGroup, w.offsets, strings.ReplaceAll(w.ConsumerGroup, "'", "''"), there)
}
