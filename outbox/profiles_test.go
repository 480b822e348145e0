package outbox_test

import (
	"testing"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

func TestARelayWarnsOfSynchronousCommitOffAtStart(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "settings of the connection string")
	_, url := database(t)
	var log testenv.Log
	for range 2 {
		relay := &outbox.Relay{DB: testenv.Open(t, url+"&synchronous_commit=off"), Sink: newRecorder(nil), Logger: log.Logger()}
		if err := relay.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := log.Count(`msg="oncemill: synchronous_commit is off`); n != 1 || log.Count("a relay publishes again what it had deleted") != 1 || log.Count("out of the connection string") != 1 {
		t.Errorf("%d warnings:\n%s", n, log.String())
	}
}
