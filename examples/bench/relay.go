package main

import (
	"context"
	"database/sql"

	"github.com/ThreeDotsLabs/watermill"
	wmnats "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/jetstream"
	wmsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/outbox"
)

// relay is Oncemill's: it moves rows from the outbox to JetStream.
func relay(ctx context.Context, s setting) error {
	db, err := openPool(ctx, s.Postgres, spare)
	if err != nil {
		return err
	}
	defer db.Close()
	nc, err := nats.Connect(s.NATS, nats.MaxReconnects(-1))
	if err != nil {
		return err
	}
	defer nc.Close()
	meter, wait := startMeter(ctx, s)
	defer wait()
	r := &outbox.Relay{DB: db, Sink: &jetstream.Sink{Conn: nc}, ListenURL: s.Postgres, Batch: s.Batch,
		Observer: &outbox.Observer{Batch: func(b outbox.BatchResult) {
			meter.failed.Add(int64(b.Deferred + b.Parked + b.Unavailable))
			meter.ends(b.Published)
		}}}
	meter.starts()
	return r.Run(ctx)
}

// forward is watermill-sql's: its subscriber and Watermill's forwarder move rows to
// JetStream.
func forward(ctx context.Context, s setting) error {
	db, err := openPool(ctx, s.Postgres, spare)
	if err != nil {
		return err
	}
	defer db.Close()
	publisher, err := wmnats.NewPublisher(wmnats.PublisherConfig{URL: s.NATS, Logger: watermill.NopLogger{}})
	if err != nil {
		return err
	}
	defer publisher.Close()
	subscriber, err := rowsOf(db, s.Batch)
	if err != nil {
		return err
	}
	meter, wait := startMeter(ctx, s)
	defer wait()
	f, err := forwarder.NewForwarder(subscriber, publisher, watermill.NopLogger{}, forwarder.Config{
		ForwarderTopic: forwarderTopic(s.Topic),
		Middlewares:    []message.HandlerMiddleware{meter.middleware},
	})
	if err != nil {
		return err
	}
	return f.Run(ctx)
}

// rowsOf subscribes to watermill-sql's tables, and reads so many rows with a SELECT: 0 means
// 100.
func rowsOf(db *sql.DB, selects int) (*wmsql.Subscriber, error) {
	return wmsql.NewSubscriber(db, wmsql.SubscriberConfig{
		SchemaAdapter:    wmsql.DefaultPostgreSQLSchema{SubscribeBatchSize: selects},
		OffsetsAdapter:   wmsql.DefaultPostgreSQLOffsetsAdapter{},
		InitializeSchema: true,
	}, watermill.NopLogger{})
}

// forwarderTopic is a name for a table of watermill-sql.
func forwarderTopic(topic string) string { return "rows_" + topic[len("in-"):] }

// publish is as fast as JetStream takes messages: those that the relay sends, which are
// made before.
func publish(ctx context.Context, s setting) error {
	nc, err := nats.Connect(s.NATS)
	if err != nil {
		return err
	}
	defer nc.Close()
	lost := make(chan error, 1)
	js, err := natsjs.New(nc, natsjs.WithPublishAsyncMaxPending(4000), natsjs.WithPublishAsyncErrHandler(func(_ natsjs.JetStream, _ *nats.Msg, err error) {
		select {
		case lost <- err:
		default:
		}
	}))
	if err != nil {
		return err
	}
	messages := relayed(s.Out, s.Messages)
	meter, wait := startMeter(ctx, s)
	defer wait()
	meter.starts()
	for _, msg := range messages {
		if _, err := js.PublishMsgAsync(msg, patient); err != nil {
			return err
		}
	}
	select {
	case <-js.PublishAsyncComplete():
		meter.ends(len(messages))
	case <-ctx.Done():
	}
	select {
	case err := <-lost:
		return err
	case <-ctx.Done():
		return nil
	}
}

// relayed are messages as jetstream.Sink sends them.
func relayed(topic string, n int) (all []*nats.Msg) {
	uuids, ids := newKeys(false), newKeys(true)
	for range n {
		uuid := uuids.next()
		msg := nats.NewMsg(topic)
		msg.Data = payload(uuid)
		msg.Header.Set(jetstream.UUIDHeader, uuid)
		msg.Header.Set(nats.MsgIdHdr, ids.next())
		msg.Header.Set(outbox.OriginMetadata, "2026-11-30T12:00:00.123456Z")
		all = append(all, msg)
	}
	return all
}
