package watermillsql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/forwarder"

	"github.com/oncemill/oncemill/internal/dbcheck"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/schema"
)

const (
	// finishTime is how long a transaction may go on when Run's context has ended.
	finishTime = 15 * time.Second

	// idleTimeout is after how long without a statement Postgres ends a transaction: the
	// group's row must not stay locked by a process that is frozen.
	idleTimeout = "30s"

	// waitNotice is how often Run says what it waits for.
	waitNotice = 30 * time.Second
)

// work is a Drain at work.
type work struct {
	*Drain
	messages, offsets string // the tables, as they are written in SQL
	marshaler         forwarder.Marshaler
	logger            *slog.Logger
	done              Drained
	noticed           time.Time // when a notice of what is waited for was logged
}

// open checks everything but the group.
func (d *Drain) open(ctx context.Context) (*work, error) {
	if err := d.validate(); err != nil {
		return nil, err
	}
	if err := dbcheck.Check(ctx, d.DB, d.Schema); err != nil {
		return nil, fmt.Errorf("watermillsql: %w", err)
	}
	w := &work{Drain: d, marshaler: d.Marshaler, logger: d.Logger}
	if w.marshaler == nil {
		w.marshaler = forwarder.DefaultMarshaler{}
	}
	if w.logger == nil {
		w.logger = slog.Default()
	}
	return w, w.findTables(ctx)
}

// run moves messages until there is nothing more to do.
func (w *work) run(ctx context.Context) error {
	for {
		more, err := w.step(ctx)
		var bad *MessageError
		switch {
		case ctx.Err() != nil && w.Follow:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("watermillsql: stopped before all was moved (run it again: it goes on from %s): %w", w.done.Position, context.Cause(ctx))
		case err == nil && !more && !w.Follow:
			return nil
		case err == nil && more:
			continue
		case errors.As(err, &bad) || errors.Is(err, ErrNoGroup) || err != nil && !w.Follow:
			return fmt.Errorf("watermillsql: %w", err)
		case err != nil:
			w.logger.WarnContext(ctx, "watermillsql: drain: trying again", "topic", w.Topic, "error", err)
		}
		w.pause(ctx)
	}
}

func (w *work) pause(ctx context.Context) {
	timer := time.NewTimer(w.pollInterval())
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (w *work) pollInterval() time.Duration {
	if w.PollInterval == 0 {
		return time.Second
	}
	return w.PollInterval
}

func (w *work) batch() int {
	if w.Batch == 0 {
		return 500
	}
	return w.Batch
}

// step moves a batch, if there is one. more says that there may be another: without
// Follow too while messages wait for older transactions.
func (w *work) step(ctx context.Context) (more bool, err error) {
	next, err := w.look(ctx)
	switch {
	case err != nil || !next.found:
		return false, err
	case !next.ready:
		w.notice(ctx)
		w.pause(ctx)
		return true, nil
	}
	work, stop := outlive(ctx)
	defer stop()
	return true, w.move(ctx, work)
}

// outlive returns a context that ends finishTime after ctx: what is under way may be
// finished. A COMMIT that is cancelled reports success before a synchronous standby has
// it.
func outlive(ctx context.Context) (context.Context, func()) {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		select {
		case <-ended:
			return
		case <-ctx.Done():
		}
		timer := time.NewTimer(finishTime)
		defer timer.Stop()
		select {
		case <-ended:
		case <-timer.C:
			cancel()
		}
	}()
	return work, func() { close(ended); cancel() }
}

// next is what comes after the group's position.
type next struct {
	found bool
	ready bool // all transactions that began before the message's have ended
}

// look reads without locking anything, so that a Drain that has nothing to do is in
// nobody's way.
func (w *work) look(ctx context.Context) (n next, err error) {
	pos, found, err := w.position(ctx, w.DB, "")
	if err != nil {
		return n, err
	}
	if !found {
		return n, w.noGroup(ctx)
	}
	w.done.Position = pos
	err = w.DB.QueryRowContext(ctx, `
SELECT transaction_id < pg_snapshot_xmin(pg_current_snapshot()) FROM `+w.messages+`
WHERE (transaction_id, "offset") > ($1::text::xid8, $2::bigint)
ORDER BY transaction_id, "offset" LIMIT 1`, pos.Transaction, pos.Offset).Scan(&n.ready)
	if errors.Is(err, sql.ErrNoRows) {
		return n, nil
	}
	n.found = err == nil
	return n, err
}

// notice says which transactions messages wait for.
func (w *work) notice(ctx context.Context) {
	if time.Since(w.noticed) < waitNotice {
		return
	}
	w.noticed = time.Now()
	var holder string
	err := w.DB.QueryRowContext(ctx, `
SELECT coalesce(string_agg(holder, '; '), 'one that this role may not see (GRANT pg_read_all_stats), or one that has ended just now') FROM (
	SELECT 'process ' || pid || ' of user ' || coalesce(usename::text, '') || ' in database ' || coalesce(datname::text, '') ||
		' for ' || date_trunc('second', clock_timestamp() - xact_start) AS holder
	FROM pg_stat_activity WHERE backend_xid = pg_snapshot_xmin(pg_current_snapshot())::xid
	UNION ALL
	SELECT 'prepared transaction ' || gid FROM pg_prepared_xacts WHERE transaction = pg_snapshot_xmin(pg_current_snapshot())::xid
) AS holders`).Scan(&holder)
	if err != nil {
		holder = "unknown: " + err.Error()
	}
	w.logger.InfoContext(ctx, "watermillsql: drain: messages wait for an older transaction to end, since it may have written some that come before them",
		"topic", w.Topic, "transaction", holder)
}

// wake tells relays that there is something for them, which they would see at their next
// poll.
func (w *work) wake(ctx context.Context) {
	_, err := w.DB.ExecContext(ctx, `SELECT pg_notify($1, '')`, outbox.Channel(w.Schema))
	if err != nil {
		w.logger.DebugContext(ctx, "watermillsql: drain: NOTIFY failed; relays poll", "error", err)
	}
}

func (w *work) outbox() string { return schema.Quote(w.Schema) + ".outbox" }
