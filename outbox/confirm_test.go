package outbox_test

import (
	"strings"
	"testing"

	"github.com/oncemill/oncemill/outbox"
)

// A server that has taken over, or was started again, confirms nothing that was fetched
// before.
func TestAnotherServerDoesNotConfirmWhatWasFetched(t *testing.T) {
	t.Parallel()
	db, _ := database(t)
	server := value[int64](t, db, `SELECT `+outbox.ServerStart)
	if err := outbox.Confirm(t.Context(), db, server); err != nil {
		t.Errorf("the same server: %v", err)
	}
	if err := outbox.Confirm(t.Context(), db, server-1); err == nil || !strings.Contains(err.Error(), "another server") {
		t.Errorf("another server: %v", err)
	}
}
