package testcontainers

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/testcontainers/internal/servers"
)

// A KafkaBroker is a Kafka that is shared by tests.
type KafkaBroker struct {
	Brokers []string // host:port, for clients
}

// Kafka returns a real Kafka. It has no topics, and makes none by itself: create
// those of your test, and name them and the consumer groups after it, for the
// broker is shared.
//
// The broker starts with the first test of the process that asks, which takes
// about three seconds, and ends with the process, however that ends. With
// ONCEMILL_TEST_KAFKA_BROKERS set the brokers named there are used instead.
//
// A test is skipped where there is neither Java 17 or later nor Docker; it fails
// with ONCEMILL_TEST_REQUIRE_KAFKA=1.
func Kafka(t testing.TB) *KafkaBroker {
	t.Helper()
	kafka, err := sharedKafka()
	if errors.Is(err, servers.ErrNoKafka) && os.Getenv(testenv.RequireKafkaVariable) != "1" {
		t.Skip(servers.ErrNoKafka)
	}
	if err != nil {
		t.Fatalf("start a Kafka for the tests: %v", err)
	}
	return &KafkaBroker{Brokers: strings.Split(kafka.address, ",")}
}

// sharedKafka returns the Kafka for all tests of this process.
var sharedKafka = sync.OnceValues(func() (shared, error) {
	if brokers := os.Getenv(testenv.KafkaVariable); brokers != "" {
		return shared{address: brokers}, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), serverLimit)
	defer cancel()
	brokers, stop, err := servers.Kafka(ctx)
	return shared{brokers, stop}, err
})
