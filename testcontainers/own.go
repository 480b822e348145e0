package testcontainers

import (
	"context"
	"testing"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/testcontainers/kafkaserver"
	"github.com/oncemill/oncemill/testcontainers/natsserver"
	"github.com/oncemill/oncemill/testcontainers/postgres"
)

// The servers of one's own, for tests that kill, restart or freeze them. They
// are child processes on every machine, never containers.
type (
	PostgresServer      = postgres.Server
	PostgresOptions     = postgres.Options
	PostgresPair        = postgres.Pair
	PostgresPairOptions = postgres.PairOptions
	NATSServer          = natsserver.Server
	NATSOptions         = natsserver.Options
	NATSCluster         = natsserver.Cluster
	KafkaServer         = kafkaserver.Server
	KafkaOptions        = kafkaserver.Options
)

// StartPostgres starts a Postgres server of one's own and returns when it
// accepts connections. Close it at the end of the test.
func StartPostgres(ctx context.Context, options PostgresOptions) (*PostgresServer, error) {
	return postgres.Start(ctx, options)
}

// StartPostgresPair starts a primary and a standby of one's own, for tests of
// failovers, and returns when COMMITs wait for the standby. Close it at the end of
// the test.
func StartPostgresPair(ctx context.Context, options PostgresPairOptions) (*PostgresPair, error) {
	return postgres.StartPair(ctx, options)
}

// StartNATS starts a NATS server with JetStream of one's own, as a child
// process, and returns when it accepts connections. Close it at the end of the
// test. It needs the go command.
func StartNATS(ctx context.Context, options NATSOptions) (*NATSServer, error) {
	return natsserver.Start(ctx, options)
}

// StartNATSCluster starts several NATS servers of one's own that replicate streams
// to each other. Close it at the end of the test. It needs the go command.
func StartNATSCluster(ctx context.Context, nodes int, options NATSOptions) (*NATSCluster, error) {
	return natsserver.StartCluster(ctx, nodes, options)
}

// StartKafka starts a Kafka server of one's own and returns when it answers
// clients, which takes about 3 seconds. Close it at the end of the test. It needs
// Java 17 or later; without, the error wraps kafkaserver.ErrNoJava.
func StartKafka(ctx context.Context, options KafkaOptions) (*KafkaServer, error) {
	return kafkaserver.Start(ctx, options)
}

// DatabaseOn returns a fresh database on a server of one's own, with Oncemill's
// schema in it. Its pool is closed at the end of the test; the database goes
// with the server.
func DatabaseOn(t testing.TB, server *PostgresServer) *Database {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), databaseLimit)
	defer cancel()
	address, _, err := testenv.CreateDatabase(ctx, server.URL(""), true)
	if err != nil {
		t.Fatalf("make a database for the test: %v", err)
	}
	return &Database{URL: address, DB: testenv.Open(t, address)}
}
