package faults_test

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"
)

// owing bills n orders and leaves the receipts in the outbox.
func (s *site) owing(n int) {
	s.t.Helper()
	s.order(n)
	s.billed(start(s.t, s.worker("worker")))
	s.owed()
}

// outbox returns how many rows are in the outbox.
func (s *site) outbox() int {
	s.t.Helper()
	return s.count(`SELECT count(*) FROM oncemill.outbox`)
}

func (s *site) outboxEmpty() {
	s.t.Helper()
	eventually(s.t, "the outbox is empty", func() bool { return s.outbox() == 0 })
}

// README: the relay dies between publish and delete; the message is published
// again under the same dedup id, and a consumer that claims drops it in any case.
func TestRelayKilledBetweenPublishAndCommit(t *testing.T) {
	t.Parallel()
	const orders = 30
	for name, forgets := range map[string]bool{"the broker remembers": false, "the broker has forgotten": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			probes := "probes-" + s.receipts
			window := 2 * time.Minute
			if forgets {
				window = 100 * time.Millisecond
			}
			s.stream(natsjs.StreamConfig{Name: s.receipts, Subjects: []string{s.receipts, probes}, Duplicates: window})
			s.owing(orders)
			r := s.relay("victim")
			r.Fault = dieAfterPublishing
			start(t, r).AwaitDeath()
			if stored, rows := s.stored(s.receipts), s.outbox(); stored != orders || rows != orders {
				t.Fatalf("it died at another moment: %d published, %d in the outbox", stored, rows)
			}
			wanted := orders
			if forgets {
				wanted += orders + s.forgotten(probes)
			}
			relay := start(t, s.relay("heir"))
			s.outboxEmpty()
			relay.Stop()
			if stored := s.stored(s.receipts); stored != wanted {
				t.Errorf("the stream holds %d messages, want %d", stored, wanted)
			}

			mailer := start(t, s.mailer("mailer"))
			s.consumed(mailing, s.receipts)
			mailer.Stop()
			s.balance(mailing)
			if n := mailer.Times("duplicate"); forgets && n != orders {
				t.Errorf("%d duplicates, want %d", n, orders)
			}
		})
	}
}

// forgotten waits until the stream of a subject has forgotten the ids of all that
// was published before. It returns how many messages it has added.
func (s *site) forgotten(subject string) (added int) {
	s.t.Helper()
	eventually(s.t, "the stream forgets ids", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		ack, err := s.js.Publish(ctx, subject, nil, natsjs.WithMsgID("probe"))
		must(s.t, err)
		if !ack.Duplicate {
			added++
		}
		return added == 2
	})
	return added
}

// A relay freezes with a part of its batch published. Others go on with the rows
// that it does not hold, and with those as well once Postgres has ended its
// transaction.
func TestRelayFrozen(t *testing.T) {
	t.Parallel()
	const orders, batch = 50, 10
	s := newSite(t)
	s.owing(orders)
	r := s.relay("frozen")
	r.Fault, r.Batch, r.PublishTimeout = freezeWithinAPublish, batch, 1500*time.Millisecond
	frozen := start(t, r)
	frozen.Await("freezing", 1)

	r = s.relay("awake")
	r.Batch = batch
	awake := start(t, r)
	awake.Await("published", (orders-batch)/batch)
	// Of those, two batches may not be settled yet.
	if stored, rows := s.stored(s.receipts), s.outbox(); stored != orders-batch/2 || rows > 3*batch {
		t.Errorf("%d published and %d in the outbox while the frozen relay holds %d", stored, rows, batch)
	}
	s.outboxEmpty()
	wantStored := func(n int) {
		t.Helper()
		if stored := s.stored(s.receipts); stored != n {
			t.Errorf("the stream holds %d messages, want %d", stored, n)
		}
	}
	wantStored(orders)

	frozen.Signal(syscall.SIGCONT)
	eventually(t, "it finds its transaction gone", func() bool { return frozen.Logged("cannot go on") > 0 })
	wantStored(orders)
	awake.Stop()
	s.exec(`INSERT INTO oncemill.outbox (topic) VALUES ($1)`, s.receipts)
	frozen.Await("published", 1) // it is as good as new
	s.outboxEmpty()
	wantStored(orders + 1)
	frozen.Stop()
}

// README: the broker refuses a message; the row is parked with the error, the
// others go on.
func TestPayloadAboveTheBrokersLimitDoesNotStopTheRelay(t *testing.T) {
	t.Parallel()
	const rows = 20
	s := newSite(t)
	s.stream(natsjs.StreamConfig{Name: s.receipts, Subjects: []string{s.receipts}, MaxMsgSize: 100 << 10})
	for i := range rows {
		size := 10
		switch i {
		case 5:
			size = 2 << 20 // above the server's max_payload
		case 10:
			size = 200 << 10 // above the stream's limit
		}
		s.exec(`INSERT INTO oncemill.outbox (topic, uuid, payload) VALUES ($1, $2, $3)`,
			s.receipts, fmt.Sprint(i), make([]byte, size))
	}
	relay := start(t, s.relay("relay"))
	eventually(t, "all others are published", func() bool { return s.outbox() == 2 })
	for uuid, reason := range map[string]string{"5": "max_payload", "10": "max_msg_size"} {
		var parked bool
		var attempts int
		var text string
		must(t, s.db.QueryRow(`SELECT parked_at IS NOT NULL, attempts, last_error FROM oncemill.outbox WHERE uuid = $1`, uuid).
			Scan(&parked, &attempts, &text))
		if !parked || attempts != 1 || !strings.Contains(text, reason) {
			t.Errorf("row %s: parked %v after %d attempts, %q; want it parked for %s", uuid, parked, attempts, text, reason)
		}
	}
	eventually(t, "the log tells of both", func() bool { return relay.Logged("parked a message") == 2 })
	s.exec(`INSERT INTO oncemill.outbox (topic) VALUES ($1)`, s.receipts)
	eventually(t, "later ones are published", func() bool { return s.outbox() == 2 })
	if stored := s.stored(s.receipts); stored != rows-1 {
		t.Errorf("the stream holds %d messages, want %d", stored, rows-1)
	}
	relay.Stop()
}
