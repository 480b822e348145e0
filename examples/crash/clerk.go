package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/outbox"
)

const (
	createNotes = `CREATE TABLE notes (key text, number int, uuid text, PRIMARY KEY (key, number))`
	insertNote  = `INSERT INTO notes (key, number, uuid) VALUES ($1, $2, $3)`
	lastNote    = `SELECT COALESCE(max(number), 0) FROM notes WHERE key = $1`
)

const (
	keysOfClerk = 32
	clerkPause  = 2 * time.Millisecond
)

// clerk is a program with transactions of its own. It sends numbered messages by keys, of
// which it has some for itself: they have to arrive in the order of their numbers.
func clerk(ctx context.Context, s setting) error {
	trace, err := openTrace(s)
	if err != nil {
		return err
	}
	defer trace.close()
	db, err := crew.OpenDB(s.Postgres)
	if err != nil {
		return err
	}
	defer db.Close()
	crew.Say(running)
	draws := s.draws()
	for ctx.Err() == nil {
		key := fmt.Sprintf("clerk-%d-key-%d", s.Place, draws.IntN(keysOfClerk))
		limited, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := writeNotes(limited, db, trace, key, 1+draws.IntN(3))
		cancel()
		pause := clerkPause
		if err != nil {
			trace.note(key, "%.200v", err)
			pause *= 10
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return nil
}

// writeNotes writes the next messages of a key, in one transaction. Where its outcome is
// not known the next one finds out.
func writeNotes(ctx context.Context, db *sql.DB, trace *trace, key string, n int) (err error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ignoreDone(tx.Rollback())) }()
	var number int
	// Whoever writes messages with an ordering key has its transactions follow one another,
	// also those of an earlier life of this process, which may not have ended yet.
	if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock(hashtextextended($1, 0))`, key); err != nil {
		return err
	}
	if err := tx.QueryRowContext(ctx, lastNote, key).Scan(&number); err != nil {
		return err
	}
	for range n {
		number++
		msg := message.NewMessage(watermill.NewUUID(), fmt.Appendf(nil, "%s %d", key, number))
		msg.Metadata.Set(outbox.OrderingKeyMetadata, key)
		if _, err := tx.ExecContext(ctx, insertNote, key, number, msg.UUID); err != nil {
			return err
		}
		if err := outbox.InTx(tx).Publish(ordered, msg); err != nil {
			return err
		}
		trace.note(msg.UUID, "written as %s %d", key, number)
	}
	return tx.Commit()
}

func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}
