package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
)

// memory is for how long streams recognise what is published twice: JetStream's default.
const memory = 2 * time.Minute

// patient waits for a broker that is slow to take messages on a busy machine: nats.go's
// default is to give up after 200 ms.
var patient = natsjs.WithStallWait(time.Minute)

// prepareTables empties the tables, and says how many claims are left there.
func prepareTables(ctx context.Context, s *stage, t *turn) error {
	if err := t.db.clear(ctx, t.database == ""); err != nil {
		return err
	}
	return t.db.db.QueryRowContext(ctx, `SELECT count(*) FROM oncemill.claims`).Scan(&t.claims)
}

// prepareMessages publishes the messages of a turn, in a stream of its own.
func prepareMessages(ctx context.Context, s *stage, t *turn) error {
	if err := prepareTables(ctx, s, t); err != nil {
		return err
	}
	if err := s.broker.Create(ctx, memory, t.setting.Topic); err != nil {
		return err
	}
	made := newKeys(t.random)
	for i := range t.messages {
		key := made.next()
		msg := &nats.Msg{Subject: t.setting.Topic, Data: payload(key), Header: nats.Header{jetstream.UUIDHeader: {key}}}
		if _, err := s.js.PublishMsgAsync(msg, patient); err != nil {
			return err
		}
		if i%1000 == 0 {
			s.screen.Status(fmt.Sprintf("%s: publishing", t.contender.name))
		}
	}
	select {
	case <-s.js.PublishAsyncComplete():
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.wantMessages(ctx, t.setting.Topic, t.messages)
}

// preparePurge adds claims that are older than they are kept for, as many as will be
// written. Old claims are on pages that were not changed since the last checkpoint.
func preparePurge(ctx context.Context, s *stage, t *turn) error {
	if err := prepareMessages(ctx, s, t); err != nil {
		return err
	}
	_, err := t.db.db.ExecContext(ctx, `
INSERT INTO oncemill.claims (consumer, key, settled_at)
SELECT '`+consumer+`', `+keySQL("(extract(epoch FROM now() - interval '8 days') * 1000)::bigint")+`, now() - interval '8 days' + g * interval '1 microsecond'
FROM generate_series(1::bigint, $1::bigint) AS g`, t.messages)
	if err == nil {
		_, err = t.db.db.ExecContext(ctx, `ANALYZE oncemill.claims`)
	}
	if err == nil {
		_, err = t.db.db.ExecContext(ctx, `CHECKPOINT`)
	}
	return err
}

// prepareStream makes the stream that is published to.
func prepareStream(ctx context.Context, s *stage, t *turn) error {
	return s.broker.Create(ctx, memory, t.setting.Out)
}

// prepareRows fills the outbox.
func prepareRows(ctx context.Context, s *stage, t *turn) error {
	if err := prepareStream(ctx, s, t); err != nil {
		return err
	}
	if err := t.db.clear(ctx, true); err != nil {
		return err
	}
	_, err := t.db.db.ExecContext(ctx, `
INSERT INTO oncemill.outbox (topic, uuid, payload)
SELECT $1, key, convert_to(`+payloadSQL("key")+`, 'UTF8')
FROM (SELECT `+keySQL("(extract(epoch FROM now()) * 1000)::bigint")+` AS key FROM generate_series(1::bigint, $2::bigint) AS g) AS k`, t.setting.Out, t.messages)
	if err == nil {
		_, err = t.db.db.ExecContext(ctx, `ANALYZE oncemill.outbox`)
	}
	return err
}

// prepareForwarder writes the same rows as watermill-sql and Watermill's forwarder do.
func prepareForwarder(ctx context.Context, s *stage, t *turn) error {
	if err := prepareStream(ctx, s, t); err != nil {
		return err
	}
	if err := makeForwarderTable(t); err != nil {
		return err
	}
	publisher, err := enveloping(t.db.db, t.setting.Topic)
	if err != nil {
		return err
	}
	made := newKeys(false)
	for left := t.messages; left > 0; {
		chunk := make([]*message.Message, min(left, 1000))
		for i := range chunk {
			key := made.next()
			chunk[i] = message.NewMessage(key, payload(key))
		}
		if err := publisher.Publish(t.setting.Out, chunk...); err != nil {
			return err
		}
		left -= len(chunk)
	}
	_, err = t.db.db.ExecContext(ctx, `ANALYZE "watermill_`+forwarderTopic(t.setting.Topic)+`"`)
	return err
}

// enveloping publishes to the table of a forwarder.
func enveloping(db wmsql.ContextExecutor, topic string) (message.Publisher, error) {
	rows, err := wmsql.NewPublisher(db, wmsql.PublisherConfig{SchemaAdapter: wmsql.DefaultPostgreSQLSchema{}}, watermill.NopLogger{})
	if err != nil {
		return nil, err
	}
	return forwarder.NewPublisher(rows, forwarder.PublisherConfig{ForwarderTopic: forwarderTopic(topic)}), nil
}

// makeForwarderTable makes that table.
func makeForwarderTable(t *turn) error {
	subscriber, err := rowsOf(t.db.db, 0)
	if err != nil {
		return err
	}
	return errors.Join(subscriber.SubscribeInitialize(forwarderTopic(t.setting.Topic)), subscriber.Close())
}

// hold has a session of its own keep a snapshot, until it is released.
func (d *database) hold(ctx context.Context) (release func() error, err error) {
	tx, err := d.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	if err != nil {
		return nil, err
	}
	// It must not keep tables from being truncated.
	if _, err := tx.ExecContext(ctx, `SELECT pg_current_snapshot()`); err != nil {
		return nil, errors.Join(err, tx.Rollback())
	}
	return tx.Rollback, nil
}

// removeStreams frees what a turn has taken of the disk.
func (s *stage) removeStreams(ctx context.Context, t *turn) error {
	for _, name := range []string{t.setting.Topic, t.setting.Out} {
		if err := s.js.DeleteStream(ctx, name); err != nil && !errors.Is(err, natsjs.ErrStreamNotFound) {
			return err
		}
	}
	_, err := t.db.db.ExecContext(ctx, `DROP TABLE IF EXISTS "watermill_`+forwarderTopic(t.setting.Topic)+`", "watermill_offsets_`+forwarderTopic(t.setting.Topic)+`"`)
	return err
}
