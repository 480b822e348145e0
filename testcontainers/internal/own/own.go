// Package own starts the servers of one test, which it may kill, freeze and start again.
package own

import (
	"io"
	"testing"

	"github.com/oncemill/oncemill/testcontainers"
)

// Postgres starts a Postgres server and closes it at the end of the test.
func Postgres(t *testing.T, options testcontainers.PostgresOptions) *testcontainers.PostgresServer {
	t.Helper()
	server, err := testcontainers.StartPostgres(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	closeAfter(t, "Postgres", server)
	return server
}

// PostgresPair starts a primary and a standby and closes them at the end of the test.
func PostgresPair(t *testing.T, options testcontainers.PostgresPairOptions) *testcontainers.PostgresPair {
	t.Helper()
	pair, err := testcontainers.StartPostgresPair(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	closeAfter(t, "the pair", pair)
	return pair
}

// NATS starts a NATS server and closes it at the end of the test.
func NATS(t *testing.T, options testcontainers.NATSOptions) *testcontainers.NATSServer {
	t.Helper()
	server, err := testcontainers.StartNATS(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	closeAfter(t, "NATS", server)
	return server
}

func closeAfter(t *testing.T, name string, server io.Closer) {
	t.Helper()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Errorf("close %s: %v", name, err)
		}
	})
}
