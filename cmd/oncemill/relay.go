package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/outbox"
)

var relayCommand = command{
	name:    "relay",
	summary: "publish the outbox to NATS JetStream",
	help: `
Publish the messages in the outbox table to NATS JetStream, and delete each once
a stream has acknowledged it. Any number of relays may run on one database.

  oncemill relay --database-url 'postgres://app:secret@127.0.0.1:5432/app?sslmode=disable' \
      --nats-url nats://127.0.0.1:4222 --http 127.0.0.1:8080

It runs until SIGTERM or SIGINT, then finishes the batch it has begun; a second
signal ends it at once. It does not start without database, schema and NATS, but
once it runs it waits for whatever goes away.

With --http it answers GET /livez (200 while the process runs) and GET /readyz
(200 while database and NATS work, else 503 and the reason).`,
	prepare: prepareRelay,
}

// relayOptions are the flags of the command relay.
type relayOptions struct {
	database
	nats           natsOptions
	log            logOptions
	batch          *int
	pollInterval   *time.Duration
	publishTimeout *time.Duration
	drainTimeout   *time.Duration
	http           *string
}

func prepareRelay(f *flags) action {
	o := relayOptions{
		database:       f.database(),
		nats:           f.nats(),
		batch:          f.count("batch", 500, "the most messages in one transaction"),
		pollInterval:   f.duration("poll-interval", time.Second, "how often to look for messages when nothing wakes the relay"),
		publishTimeout: f.duration("publish-timeout", 10*time.Second, "how long NATS may take to acknowledge a batch"),
		drainTimeout:   f.duration("drain-timeout", 15*time.Second, "how long a batch may go on after SIGTERM"),
		http:           f.text("http", "ADDR", "where to serve /livez and /readyz, such as 127.0.0.1:8080\n(default: nowhere)"),
		log:            f.log(),
	}
	return func(ctx context.Context, _, stderr io.Writer) error { return o.run(ctx, stderr) }
}

// run relays until ctx ends.
func (o relayOptions) run(ctx context.Context, stderr io.Writer) error {
	logger := o.log.logger(stderr)
	connector, err := o.connector()
	if err != nil {
		return err
	}
	natsOptions, err := o.nats.options(logger)
	if err != nil {
		return err
	}
	if err := checkAddress(*o.http); err != nil {
		return err
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	conn, err := o.nats.connect(natsOptions)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := checkJetStream(ctx, conn); err != nil {
		return err
	}
	relay := o.relay(db, &jetstream.Sink{Conn: conn}, logger)
	if err := relay.Check(ctx); err != nil {
		return err
	}
	return serve(ctx, *o.http, probes(ctx, relay, conn), logger, relay.Run)
}

func (o relayOptions) relay(db *sql.DB, sink outbox.Sink, logger *slog.Logger) *outbox.Relay {
	return &outbox.Relay{
		DB:             db,
		Sink:           sink,
		Schema:         *o.schema,
		ListenURL:      *o.url,
		Batch:          *o.batch,
		PollInterval:   *o.pollInterval,
		PublishTimeout: *o.publishTimeout,
		DrainTimeout:   *o.drainTimeout,
		Logger:         logger,
	}
}

// probes returns the checks behind /readyz.
func probes(ctx context.Context, relay *outbox.Relay, conn *nats.Conn) func() error {
	return func() error {
		switch {
		case ctx.Err() != nil:
			return errors.New("shutting down")
		case !conn.IsConnected():
			return fmt.Errorf("NATS: %s", conn.Status())
		}
		return relay.Ready()
	}
}
