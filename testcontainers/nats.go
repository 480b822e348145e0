package testcontainers

import (
	"os"
	"testing"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/testcontainers/natsserver"
)

// A Broker is a NATS server with JetStream.
type Broker struct {
	URL string // for clients
}

// NATS returns a JetStream server that belongs to one test: it runs inside the
// test's process, is ready in 30 ms, and ends with the test.
//
// With ONCEMILL_TEST_NATS_URL set the server named there is used instead, which
// other tests may use at the same time: name streams and subjects after the test
// if yours are to run on such a server.
func NATS(t testing.TB) *Broker {
	t.Helper()
	if address := os.Getenv(testenv.NATSVariable); address != "" {
		return &Broker{URL: address}
	}
	server, err := natsserver.Embed()
	if err != nil {
		t.Fatalf("start a NATS server for the test: %v", err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Errorf("stop the test's NATS server: %v", err)
		}
	})
	return &Broker{URL: server.URL()}
}
