package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"

	"github.com/oncemill/oncemill/outbox"
)

var outboxCancelCommand = command{
	name:    "outbox cancel",
	summary: "take back a scheduled message",
	help: `
Take back a message that is to be sent later, before it is due. oncemill outbox list
--scheduled shows the UUIDs.

  oncemill outbox cancel --uuid 6f1c2c1e-0d7a-4b7e-8c3f-0a6f9d1f7c11
  oncemill outbox cancel --uuid reminder-7 --topic orders.reminder

It fails if there is none: it may be sent already. Where several have the UUID, all are
cancelled, or those of the --topic.`,
	prepare: func(f *flags) action {
		db := f.database()
		uuid := f.text("uuid", "UUID", "the message's UUID; required")
		topic := f.text("topic", "TOPIC", "only of this topic")
		f.onlyHere("uuid", "topic")
		return func(ctx context.Context, stdout, _ io.Writer) error {
			return cancelScheduled(ctx, db, *topic, *uuid, stdout)
		}
	},
}

func cancelScheduled(ctx context.Context, db database, topic, uuid string, stdout io.Writer) error {
	if uuid == "" {
		return usagef("needs --uuid: which message? (oncemill outbox list --scheduled shows them)")
	}
	admin, close, err := db.admin(ctx)
	if err != nil {
		return err
	}
	defer close()
	tx, err := admin.DB.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return err
	}
	defer tx.Rollback()
	n, err := (&outbox.Publisher{Schema: admin.Schema}).Cancel(ctx, tx, topic, uuid)
	if err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("no message with the UUID %s is scheduled: it was sent or cancelled before, or has another UUID or topic", shown(uuid))
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit (it may have succeeded): %w", err)
	}
	are := "1 message is"
	if n > 1 {
		are = fmt.Sprintf("%d messages are", n)
	}
	_, err = fmt.Fprintf(stdout, "%s cancelled\n", are)
	return err
}
