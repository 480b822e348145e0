package servers

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/oncemill/oncemill/testcontainers/kafkaserver"
)

// ErrNoKafka is returned where neither Java nor Docker is there to run Kafka.
var ErrNoKafka = errors.New("needs Java 17 or later (Debian: openjdk-17-jre-headless) or Docker")

// Kafka starts a Kafka that is meant for many tests and returns the address of
// its broker, and a function that stops it. If this process ends without calling
// that, the broker ends all the same.
//
// A process comes first, because it is up in three seconds and does not depend on
// a daemon or a registry; then Docker, where an engine answers.
func Kafka(ctx context.Context) (brokers string, stop func() error, err error) {
	java, err := java(ctx)
	if err != nil {
		return "", nil, err
	}
	if java == "" {
		return dockerKafka(ctx)
	}
	server, err := kafkaserver.Start(ctx, kafkaserver.Options{Java: java, Config: patient})
	if err != nil {
		return "", nil, err
	}
	return server.Broker(), server.Close, nil
}

// patient keeps a broker that nobody kills from losing its session on a busy
// machine.
const patient = "broker.session.timeout.ms=9000"

// KafkaAvailable returns nil if there is something that Kafka can be started
// with, or else an error that wraps ErrNoKafka and says what is missing.
func KafkaAvailable(ctx context.Context) error {
	_, err := java(ctx)
	return err
}

// java returns the path of the program java, or "" if Docker is to be used.
func java(ctx context.Context) (string, error) {
	docker := os.Getenv(DockerVariable)
	if docker == "1" {
		return "", nil
	}
	java, err := kafkaserver.FindJava(ctx)
	switch {
	case !errors.Is(err, kafkaserver.ErrNoJava):
		return java, err
	case docker != "0" && EngineAnswers(ctx):
		return "", nil
	}
	return "", fmt.Errorf("%w: %w", ErrNoKafka, err)
}
