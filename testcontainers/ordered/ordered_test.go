package ordered_test

import (
	"os"
	"testing"
	"time"

	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/lot"
)

// README: messages with the same ordering key are published in the order in which their
// transactions have committed, whatever happens to relays, broker and database. Nothing
// is lost, and nothing comes twice while the broker remembers dedup ids.
func TestKeyedMessagesKeepTheirOrderWhateverHappens(t *testing.T) {
	t.Parallel()
	server, broker := ownPostgres(t), ownNATS(t)
	s := newSite(t, testcontainers.DatabaseOn(t, server), broker.URL(), 2*time.Minute, load{
		Producers: 3, Writers: 6, Messages: 20_000, Unkeyed: 5_000, Keys: 200, Pause: 40 * time.Millisecond,
	})
	s.server, s.broker = server, broker
	c := newScript(s)
	c.brokerDies, c.brokerFreezes, c.postgresDies = []int{10, 40, 75}, []int{25, 85}, []int{55}
	l := s.perform(c)
	s.balance(l, false)
}

// Relays that look for rows as often as they can get them from under each other's hands,
// just when one has failed. They keep the order all the same, and none publishes what
// another one has published: here the broker would take it twice.
func TestRelaysSideBySideKeepTheOrder(t *testing.T) {
	t.Parallel()
	s := newSite(t, testcontainers.Postgres(t), testcontainers.NATS(t).URL, 2*time.Minute, load{
		Producers: 2, Writers: 8, Messages: 10_000, Unkeyed: 1_000, Keys: 200,
	})
	s.steady, s.bare, s.poll, s.backoff, s.timeout = true, true, 2*time.Millisecond, 5*time.Millisecond, 0
	s.operate()
	c := newScript(s)
	c.faults = nil
	c.open()
	s.produce()
	s.drained()
	c.close()
	l := s.read()
	s.t.Logf("%d messages in %d batches", len(l.sent), s.times("batch"))
	s.balance(l, false)
}

// README: where the broker has forgotten a dedup id, a message may come again, but
// a later one of its key never comes before it.
func TestARepetitionNeverComesBeforeItsPredecessors(t *testing.T) {
	t.Parallel()
	broker := ownNATS(t)
	s := newSite(t, testcontainers.Postgres(t), broker.URL(), 100*time.Millisecond, load{
		Producers: 2, Writers: 6, Messages: 4_000, Unkeyed: 1_000, Keys: 60, Pause: 40 * time.Millisecond,
	})
	s.broker = broker
	s.backoff = 150 * time.Millisecond // a message that is tried again is forgotten by then
	c := newScript(s)
	c.brokerDies, c.brokerFreezes = []int{20, 60}, []int{40}
	l := s.perform(c)
	if l.repeated() == 0 {
		t.Error("no message came again, so the broker has not forgotten")
	}
	s.balance(l, true)
}

// perform plays a script until all is published.
func (s *site) perform(c *script) *ledger {
	s.t.Helper()
	s.operate()
	c.open()
	s.produce()
	begun := time.Now()
	c.play()
	written := time.Since(begun)
	s.drained()
	c.close()
	l := s.read()
	s.t.Logf("%d messages written in %.1f s and published in %.1f, %d deliveries, %d of them repeated, in %d batches; messages freed: %d; broker away: %d; "+
		"relays: %d, of which %v; stale batches: %d; transactions late: %d, undone: %d", len(l.sent), written.Seconds(), time.Since(begun).Seconds(),
		len(l.stream), l.repeated(), s.times("batch"), s.count(`SELECT count(*) FROM freed`), s.times("away"),
		len(s.relays), c.done, s.times("stale"), s.wrote("late"), s.wrote("undone"))
	s.wantSuffered(c)
	return l
}

// wantSuffered wants everything to have happened that may, unless the load is less than
// the test's own.
func (s *site) wantSuffered(c *script) {
	s.t.Helper()
	if os.Getenv(lot.MessagesVariable) != "" {
		return
	}
	for _, f := range []fault{dieBeforePublishing, dieAfterPublishing, killed, stopped} {
		if c.done[f] == 0 {
			s.t.Errorf("no relay has come to %s", f)
		}
	}
	if s.times("stale") == 0 {
		s.t.Error("no frozen relay has published what it had")
	}
}

// wrote returns how often producers have said a word.
func (s *site) wrote(word string) (n int) {
	for _, p := range s.producers {
		n += p.Times(word)
	}
	return n
}
