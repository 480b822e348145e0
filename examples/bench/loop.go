package main

import (
	"context"
	"database/sql"
)

// A loop does what once-batched does to Postgres, on one connection, and nothing else. Its
// statements have no context, with which lib/pq would start a goroutine for each.
type loop struct {
	statements map[**sql.Stmt]string // to be prepared
	db         *sql.DB
	keys       *keys
}

// A batch is the messages of one transaction.
type batch struct{ keys, payloads []string }

// run has do handle the messages, in batches.
func (l *loop) run(ctx context.Context, s setting, do func(tx *sql.Tx, b batch) error) (err error) {
	if l.db, err = openPool(ctx, s.Postgres, 1); err != nil {
		return err
	}
	defer l.db.Close()
	for stmt, query := range l.statements {
		if *stmt, err = l.db.Prepare(query); err != nil {
			return err
		}
	}
	meter, wait := startMeter(ctx, s)
	defer wait()
	l.keys = newKeys(false)
	meter.starts()
	for left := s.Messages; left > 0 && ctx.Err() == nil; {
		n := min(left, s.Batch)
		if err := l.transaction(l.next(n), do); err != nil {
			return err
		}
		meter.ends(n)
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

func (l *loop) transaction(b batch, do func(tx *sql.Tx, b batch) error) error {
	tx, err := l.db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := do(tx, b); err != nil {
		return err
	}
	return tx.Commit()
}
