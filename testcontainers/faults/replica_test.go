package faults_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers"
)

// A program that is led to a replica says so when it starts, and what helps. If
// it finds itself there later, that is an outage.
func TestAReplicaFailsAtStart(t *testing.T) {
	t.Parallel()
	both := pair(t)
	database := testcontainers.DatabaseOn(t, both.Primary())
	replica := testenv.Open(t, both.Standby().URL(nameOf(t, database)))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	inbox := &oncemill.Inbox{DB: replica}
	check := inbox.Check
	for err := check(ctx); !errors.Is(err, oncemill.ErrReadOnly); err = check(ctx) {
		if ctx.Err() != nil { // until the standby has applied what the primary has done
			t.Fatalf("Check: %v", err)
		}
	}
	relay := &outbox.Relay{DB: replica, Sink: outbox.PublisherSink{}}
	for name, err := range map[string]error{
		"Inbox.Check": check(ctx),
		"Migrate":     oncemill.Migrate(ctx, replica, ""),
		"Relay.Run":   relay.Run(ctx),
	} {
		if !errors.Is(err, oncemill.ErrReadOnly) || !strings.Contains(err.Error(), "connect to the primary") {
			t.Errorf("%s: %v", name, err)
		}
	}
	err := inbox.Consumer("billing").Once(ctx, "k", func(context.Context, oncemill.Tx) error { return nil })
	if !errors.Is(err, oncemill.ErrUnavailable) || oncemill.IsHandlerError(err) {
		t.Errorf("Once: %v", err)
	}
}
