// Package servers decides where the Postgres and the Kafka for tests come from.
package servers

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/oncemill/oncemill/testcontainers/postgres"
)

// DockerVariable is the environment variable that says whether Docker is used:
// "1" always, "0" never, unset where this machine has no Postgres, or no Java for
// Kafka.
const DockerVariable = "ONCEMILL_TEST_DOCKER"

// Postgres starts a server that is meant for many tests and returns the URL of
// its maintenance database, and a function that stops it. If this process ends
// without calling that, the server ends all the same.
//
// The Postgres of this machine comes first, because it is up in a second and
// does not depend on a daemon or a registry; then Docker, where an engine
// answers; then a download.
func Postgres(ctx context.Context) (address string, stop func() error, err error) {
	docker := os.Getenv(DockerVariable)
	if docker == "1" {
		return dockerPostgres(ctx)
	}
	bin, err := postgres.Find(ctx)
	if errors.Is(err, postgres.ErrNotFound) && docker != "0" && EngineAnswers(ctx) {
		address, stop, err := dockerPostgres(ctx)
		if err == nil {
			return address, stop, nil
		}
		fmt.Fprintln(os.Stderr, "postgres:", err) // as where an image cannot be pulled
	}
	if err != nil {
		if bin, err = postgres.Locate(ctx, os.Stderr); err != nil {
			return "", nil, err
		}
	}
	server, err := postgres.Start(ctx, postgres.Options{Bin: bin, Volatile: true})
	if err != nil {
		return "", nil, err
	}
	return server.URL(""), server.Close, nil
}
