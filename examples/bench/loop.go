package main

import (
	"context"
	"database/sql"
)

// A loop does what once-batched does to Postgres, on one connection, and nothing else.
type loop struct {
	setting setting
	conn    *sql.Conn
	meter   *meter
	keys    *keys
}

// A batch is the messages of one transaction.
type batch struct{ keys, payloads []string }

// run has do handle the messages, in batches.
func (l *loop) run(ctx context.Context, s setting, prepare func() error, do func(tx *sql.Tx, b batch) error) error {
	db, err := openPool(ctx, s.Postgres, 1)
	if err != nil {
		return err
	}
	defer db.Close()
	if l.conn, err = db.Conn(ctx); err != nil {
		return err
	}
	defer l.conn.Close()
	if err := prepare(); err != nil {
		return err
	}
	var wait func()
	l.meter, wait = startMeter(ctx, s)
	defer wait()
	l.keys = newKeys(false)
	l.meter.starts()
	for left := s.Messages; left > 0; {
		n := min(left, s.Batch)
		if err := l.transaction(ctx, l.next(n), do); err != nil {
			return err
		}
		l.meter.ends(n)
		left -= n
	}
	<-ctx.Done()
	return nil
}

func (l *loop) next(n int) (b batch) {
	for range n {
		key := l.keys.next()
		b.keys, b.payloads = append(b.keys, key), append(b.payloads, string(payload(key)))
	}
	return b
}

func (l *loop) transaction(ctx context.Context, b batch, do func(tx *sql.Tx, b batch) error) error {
	tx, err := l.conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := do(tx, b); err != nil {
		return err
	}
	return tx.Commit()
}
