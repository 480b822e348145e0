package main

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/oncemill/oncemill/internal/pgurl"
	"github.com/oncemill/oncemill/outbox"
)

var relayCommand = command{
	name:    "relay",
	summary: "publish the outbox to NATS JetStream or Apache Kafka",
	help: `
Publish the messages in the outbox table to NATS JetStream, or with
--kafka-brokers to Apache Kafka, or with --route to both, and delete each once the
broker has acknowledged it. Any number of relays may run on one database.

  oncemill relay --database-url 'postgres://app:secret@127.0.0.1:5432/app?sslmode=disable' \
      --nats-url nats://127.0.0.1:4222 --http 127.0.0.1:8080

  oncemill relay --database-url 'postgres://app:secret@127.0.0.1:5432/app?sslmode=disable' \
      --kafka-brokers 127.0.0.1:9092 --http 127.0.0.1:8080

  oncemill relay --database-url 'postgres://app:secret@127.0.0.1:5432/app?sslmode=disable' \
      --nats-url nats://127.0.0.1:4222 --kafka-brokers 127.0.0.1:9092 \
      --route 'audit-*=kafka' --route '*=nats'

It runs until SIGTERM or SIGINT, then finishes the batch that it publishes; a second
signal ends it at once. It does not start without database, schema and broker, but
once it runs it waits for whatever goes away.

With --keep 24h it keeps for a day what it has published, in case the broker loses it:
oncemill outbox replay has it published again. That takes an INSERT for each message,
the disk space, and a schema of version 6.

With --http it answers GET /livez (200 while the process runs) and GET /readyz
(200 while database and brokers work, else 503 and the reason).`,
	prepare: prepareRelay,
}

// relayOptions are the flags of the command relay.
type relayOptions struct {
	database
	broker         brokerOptions
	log            logOptions
	listenURL      *string
	batch          *int
	pollInterval   *time.Duration
	publishTimeout *time.Duration
	drainTimeout   *time.Duration
	keep           *time.Duration
	http           *string
}

func prepareRelay(f *flags) action {
	o := relayOptions{
		database:       f.database(),
		broker:         f.broker(),
		listenURL:      f.text("listen-url", "URL", "where to LISTEN for wake-ups, if --database-url goes through a pooler of\ntransactions, where that is not possible (default: as --database-url)"),
		batch:          f.count("batch", 2000, "the most messages in one transaction; the relay begins with at most 500"),
		pollInterval:   f.duration("poll-interval", time.Second, "how often to look for messages when nothing wakes the relay"),
		publishTimeout: f.duration("publish-timeout", 10*time.Second, "how long the broker may take to acknowledge a batch"),
		drainTimeout:   f.duration("drain-timeout", 15*time.Second, "how long a batch may go on after SIGTERM"),
		keep:           f.maybe("keep", "how long to keep messages once they are published, for oncemill outbox replay;\nall relays of a database should have the same (default: they are deleted at once)"),
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
	connect, err := o.broker.check(logger)
	if err != nil {
		return err
	}
	if err := checkAddress(*o.http); err != nil {
		return err
	}
	if *o.listenURL == "" {
		*o.listenURL = *o.url
	} else if _, err := pgurl.Connector(*o.listenURL); err != nil {
		return usagef("--listen-url is %w", err)
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	broker, err := connect(ctx)
	if err != nil {
		return err
	}
	defer broker.close()
	relay := o.relay(db, broker.sink, logger)
	if err := relay.Check(ctx); err != nil {
		return err
	}
	logger = logger.With("broker", broker.name)
	return serve(ctx, "relay", *o.http, probes(ctx, relay, broker), logger, relay.Run)
}

func (o relayOptions) relay(db *sql.DB, sink outbox.Sink, logger *slog.Logger) *outbox.Relay {
	return &outbox.Relay{
		DB:             db,
		Sink:           sink,
		Schema:         *o.schema,
		ListenURL:      *o.listenURL,
		Batch:          *o.batch,
		PollInterval:   *o.pollInterval,
		PublishTimeout: *o.publishTimeout,
		DrainTimeout:   *o.drainTimeout,
		Keep:           *o.keep,
		Logger:         logger,
	}
}

// probes returns the checks behind /readyz.
func probes(ctx context.Context, relay *outbox.Relay, broker *broker) func() error {
	return func() error {
		if ctx.Err() != nil {
			return errors.New("shutting down")
		}
		if err := broker.ready(); err != nil {
			return err
		}
		return relay.Ready()
	}
}
