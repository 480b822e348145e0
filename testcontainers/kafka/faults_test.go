package kafka_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/kafka"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/actor"
)

// Members join and leave under load, some of them by SIGKILL.
func TestKafkaMembersComeAndGoUnderLoad(t *testing.T) {
	t.Parallel()
	s := newSite(t, 6)
	s.order(20_000)
	workers := s.comeAndGo(2500, func(n int) role { return s.worker(fmt.Sprint("worker ", n)) })
	s.billed(workers[len(workers)-2:]...)
	s.ordered()
}

// comeAndGo has two workers at a time. Each time that so many orders more are handled, one
// of them is stopped, or killed, and another one starts.
func (s *site) comeAndGo(each int, worker func(n int) role) (workers []*actor.Process) {
	s.t.Helper()
	hire := func() { workers = append(workers, start(s.t, worker(len(workers)))) }
	hire()
	hire()
	for turn := range 6 {
		s.awaitEffects(each * (turn + 1))
		if leaves := workers[turn]; turn%3 == 2 {
			leaves.Kill()
		} else {
			leaves.Stop()
		}
		hire()
	}
	return workers
}

// README: the process dies before the commit; nothing has happened, the
// redelivery runs. And: after the commit, before the offset is committed; the
// redelivery is a duplicate.
func TestKafkaWorkerKilled(t *testing.T) {
	t.Parallel()
	for _, f := range []fault{dieInHandler, dieBeforeAck} {
		t.Run(strings.ReplaceAll(string(f), " ", "_"), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, 2)
			s.order(60)
			var dead []string
			var all []*actor.Process
			for victim := range 2 {
				r := s.worker(fmt.Sprint("victim ", victim))
				r.Fault, r.After = f, 5
				p := start(t, r)
				p.AwaitDeath()
				dead = append(dead, keyOf(p.Await("dying", 1)))
				all = append(all, p)
			}
			heir := start(t, s.worker("heir"))
			s.billed(heir)
			s.ordered()
			for _, key := range dead {
				runs, duplicates := 0, 0
				for _, p := range append(all, heir) {
					runs += p.Times("handling " + key)
					duplicates += p.Times("duplicate " + key)
				}
				switch {
				case f == dieInHandler && runs < 2:
					t.Errorf("%s, which was not committed, ran %d times, want 2 or more", key, runs)
				case f == dieBeforeAck && (runs != 1 || duplicates == 0):
					t.Errorf("%s, which was committed, ran %d times and came again %d times, want 1 and at least 1", key, runs, duplicates)
				}
			}
		})
	}
}

// keyOf returns the key in a line that a worker has said.
func keyOf(line string) string { return strings.Fields(line)[1] }

// A worker that is frozen past its session and goes on must neither have a second
// effect nor set back what the others have committed.
func TestKafkaWorkerFrozenPastItsSession(t *testing.T) {
	t.Parallel()
	for _, f := range []fault{freezeInHandler, freezeBeforeAck} {
		t.Run(strings.ReplaceAll(string(f), " ", "_"), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, 1)
			s.order(30)
			r := s.worker("frozen")
			r.Fault, r.After, r.IdleTimeout = f, 3, time.Second
			frozen := start(t, r)
			key := keyOf(frozen.Await("freezing", 1))

			awake := start(t, s.worker("awake"))
			s.consumed(s.group, s.topic)
			ends, _ := s.lag(s.group, s.topic)
			if f == freezeInHandler {
				if n := s.count(`SELECT count(*) FROM effects WHERE key = $1 AND worker = 'awake'`, key); n != 1 {
					t.Errorf("%d effects of what the frozen worker was handling, want 1", n)
				}
			} else if awake.Times("duplicate "+key) != 1 {
				t.Error("what the frozen worker had committed has not come again")
			}

			// It goes on as if nothing had happened, and finds that it may not.
			frozen.Signal(syscall.SIGCONT)
			until(t, "the frozen worker knows", func() bool { return frozen.Logged("the group has gone on without this member") > 0 })
			if f == freezeInHandler {
				until(t, "its own attempt has failed", func() bool {
					return frozen.Times("failed handler "+key)+frozen.Times("failed commit "+key) > 0
				})
			}
			s.balance(s.group, 0)
			if _, done := s.lag(s.group, s.topic); done != ends {
				t.Errorf("the group's offset was %d and is %d", ends, done)
			}
			// It is as good as new: it gets the partition when the other leaves.
			awake.Stop()
			s.order(5)
			s.billed(frozen)
			s.ordered()
			if n := s.count(`SELECT count(*) FROM effects WHERE worker = 'frozen' AND number >= 30`); n != 5 {
				t.Errorf("the frozen worker has handled %d of the last 5", n)
			}
		})
	}
}

// README: the broker is away. Handlers go on, rows stay in the outbox, nothing is
// lost.
func TestKafkaBrokerKilledUnderLoad(t *testing.T) {
	t.Parallel()
	server := ownKafka(t)
	s := siteOn(t, testcontainers.Postgres(t), []string{server.Broker()}, 3)
	stop := s.load(2 * time.Millisecond)
	workers := []*actor.Process{start(t, s.worker("first")), start(t, s.worker("second")), start(t, s.mailer("mailer")), start(t, s.relay("relay"))}
	for _, p := range workers {
		p.Await("running", 1)
	}
	for round := range 3 {
		s.awaitEffects(200 * (round + 1))
		must(t, server.Kill())
		time.Sleep(300 * time.Millisecond) // so that all of them notice
		must(t, server.Start(within(t)))
	}
	stop()
	s.billed(workers[:2]...)
	s.ordered()
	until(t, "the outbox is empty", func() bool { return s.count(`SELECT count(*) FROM oncemill.outbox`) == 0 })
	s.consumed("mailing-"+s.topic, s.receipts)
	for _, p := range workers[2:] {
		p.Stop()
	}
	s.balance("mailing-"+s.topic, 0)
}

// A relay that cannot reach the broker keeps the rows, and holds it against none.
func TestKafkaRelayWithTheBrokerAway(t *testing.T) {
	t.Parallel()
	server := ownKafka(t)
	s := siteOn(t, testcontainers.Postgres(t), []string{server.Broker()}, 2)
	relay := start(t, s.relay("relay"))
	relay.Await("running", 1)
	must(t, server.Kill())
	_, err := s.db.Exec(`INSERT INTO oncemill.outbox (topic, uuid, ordering_key, payload) SELECT $1, 'u' || i, 'k', convert_to(i::text, 'UTF8') FROM generate_series(0, 99) AS i`, s.receipts)
	must(t, err)
	relay.Await("unpublished", 2)
	if n := s.count(`SELECT count(*) FROM oncemill.outbox WHERE attempts = 0 AND parked_at IS NULL`); n != 100 {
		t.Errorf("%d rows of 100 wait", n)
	}
	must(t, server.Start(within(t)))
	until(t, "the rows are sent", func() bool { return s.count(`SELECT count(*) FROM oncemill.outbox`) == 0 })
	relay.Stop()
	b := *s.bench
	b.topic = s.receipts
	messages := b.subscribe(b.subscriber(""))
	seen := make(map[string]bool)
	for i := 0; len(seen) < 100; i++ {
		msg := receive(t, messages)
		if d, _ := kafka.FromContext(msg.Context()); string(d.Key) != "k" {
			t.Errorf("record key %q", d.Key)
		}
		seen[msg.UUID] = true
		msg.Ack()
	}
}

// A relay that dies between publish and delete sends rows again; the consumer's
// claim drops them.
func TestKafkaRelayKilledBetweenPublishAndCommit(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2)
	s.order(300)
	worker, mailer := start(t, s.worker("worker")), start(t, s.mailer("mailer"))
	for victim := range 2 {
		r := s.relay(fmt.Sprint("victim ", victim))
		r.Fault = dieAfterPublishing
		start(t, r).AwaitDeath()
	}
	relay := start(t, s.relay("heir"))
	s.billed(worker)
	until(t, "the outbox is empty", func() bool { return s.count(`SELECT count(*) FROM oncemill.outbox`) == 0 })
	s.consumed("mailing-"+s.topic, s.receipts)
	relay.Stop()
	mailer.Stop()
	if ends, _ := s.lag("mailing-"+s.topic, s.receipts); ends <= 300 {
		t.Errorf("%d receipts: no row was published twice", ends)
	}
	s.balance("mailing-"+s.topic, 0)
}

// A message in the middle of a partition that keeps failing becomes a dead letter,
// which says where it was; its successors wait until then, and go on.
func TestKafkaPoisonMessageInTheMiddleOfAPartition(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1)
	s.createTopic(s.topic+"-dead", 1)
	s.order(21)
	r := s.worker("worker")
	r.Poison, r.MaxErrors = s.keys[10], 3
	worker := start(t, r)
	s.consumed(s.group, s.topic)
	worker.Stop()
	s.balance(s.group, 1)
	s.ordered()
	if n := worker.Times("handling " + s.keys[10]); n != 3 {
		t.Errorf("it was run %d times, want 3", n)
	}
	for name, want := range map[string]string{
		consumers.DeadPartition: "0", consumers.DeadOffset: "10", consumers.DeadErrors: "3", consumers.DeadUUID: s.keys[10],
		"topic_poisoned": s.topic, "reason_poisoned": errWanted.Error(),
	} {
		var got string
		must(t, s.db.QueryRow(`SELECT metadata->>$1 FROM oncemill.outbox WHERE topic = 'dead-letter'`, name).Scan(&got))
		if !strings.Contains(got, want) {
			t.Errorf("the dead letter's %s is %q, want %q", name, got, want)
		}
	}
	var key string
	must(t, s.db.QueryRow(`SELECT convert_from(ordering_key, 'UTF8') FROM oncemill.outbox WHERE topic = 'dead-letter'`).Scan(&key))
	if key != "customer 10" {
		t.Errorf("the dead letter's ordering key is %q", key)
	}
}

// README: Postgres is away for longer than any retry; no message becomes a dead
// letter for it, the subscriber pauses, the partition goes on afterwards.
func TestKafkaPostgresAwayCountsForNothing(t *testing.T) {
	t.Parallel()
	testcontainers.Kafka(t)
	server, err := testcontainers.StartPostgres(t.Context(), testcontainers.PostgresOptions{Volatile: true})
	must(t, err)
	t.Cleanup(func() { must(t, server.Close()) })
	s := siteOn(t, testcontainers.DatabaseOn(t, server), testcontainers.Kafka(t).Brokers, 3)
	s.order(300)
	r := s.worker("worker")
	r.MaxErrors = 1 // one error that counts, and the message is a dead letter
	worker := start(t, r)
	for round := range 2 {
		s.awaitEffects(20 * (round + 1))
		must(t, server.Kill())
		until(t, "the worker pauses", func() bool { return worker.Logged("handing out no messages") == round+1 })
		time.Sleep(time.Second) // many times what a retry takes
		must(t, server.Start(within(t)))
		until(t, "the worker goes on", func() bool { return worker.Logged("handing out messages again") == round+1 })
	}
	s.billed(worker)
	s.ordered()
}

// Watermill's own subscriber for Kafka, with Once: it delivers more often, the
// effects are the same.
func TestKafkaStockSubscriberWithOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t, 3)
	s.order(500)
	var workers []*actor.Process
	for i := range 3 {
		r := s.worker(fmt.Sprint("worker ", i))
		r.Stock, r.FailEvery = true, 20
		workers = append(workers, start(t, r))
		s.awaitEffects(100 * (i + 1))
		if i < 2 {
			workers[i].Kill()
		}
	}
	s.awaitEffects(500)
	s.consumed(s.group, s.topic)
	workers[2].Stop()
	s.balance(s.group, 0)
}

// What is handled under its position is handled again if the topic is another
// one, and else not.
func TestKafkaPositionsAreKeysAcrossRestarts(t *testing.T) {
	t.Parallel()
	b := newBench(t, 2)
	b.publish(0, 40)
	seen := make(map[string]bool)
	for range 2 {
		s := b.subscriber("")
		messages := b.subscribe(s)
		for range 40 {
			msg := receive(t, messages)
			key, err := middleware.ByPosition(msg)
			must(t, err)
			seen[key] = true
			msg.Ack()
		}
		must(t, s.Close())
	}
	if len(seen) != 40 {
		t.Errorf("%d positions of 40 messages that were read twice", len(seen))
	}
}

// A member that the group has gone on without learns it from a commit instead of
// a heartbeat, as after the suspension of its machine, during which monotonic
// timers stand still. franz-go then rejoins as a new member without calling
// OnPartitionsLost, finds that the partition is another member's, and calls
// OnPartitionsRevoked in the new generation, in which the commit is accepted.
func TestKafkaAnEvictedMemberDoesNotSetTheNewOwnersOffsetBack(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	b.publish(0, 10)
	group := "g-" + b.topic
	var log logbook
	s := b.subscriber("g", kgo.SessionTimeout(30*time.Second), kgo.HeartbeatInterval(15*time.Second))
	s.Logger = log.Logger()
	messages := b.subscribe(s)
	msg := receive(t, messages)
	time.Sleep(time.Second) // the quick heartbeat after a join is over
	// The group goes on without it.
	groups, err := b.admin.DescribeGroups(within(t), group)
	must(t, err)
	for _, m := range groups[group].Members {
		leave := kmsg.NewPtrLeaveGroupRequest()
		leave.Group, leave.MemberID = group, m.MemberID
		one := kmsg.NewLeaveGroupRequestMember()
		one.MemberID = m.MemberID
		leave.Members = append(leave.Members, one)
		_, err := leave.RequestWith(within(t), b.client)
		must(t, err)
	}
	owner := b.connect(kgo.ConsumerGroup(group), kgo.ConsumeTopics(b.topic), kgo.DisableAutoCommit(), kgo.HeartbeatInterval(100*time.Millisecond))
	n := 0
	for n < 10 {
		n += owner.PollFetches(within(t)).NumRecords()
	}
	must(t, owner.CommitUncommittedOffsets(within(t)))
	b.awaitCommitted("g", 10)
	if msg.Context().Err() != nil {
		t.Fatal("the scenario does not work: it knows already")
	}
	msg.Ack()
	least := int64(10)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		least = min(least, b.committed("g"))
	}
	if least < 10 {
		t.Errorf("the owner has committed 10, and an evicted member has set it back to %d\n%s", least, log.String())
	}
}

// The broker is silent for longer than a commit may take. What was finished
// meanwhile is committed afterwards, although nothing more is finished.
func TestKafkaAFailedCommitIsRepeated(t *testing.T) {
	t.Parallel()
	server := ownKafka(t)
	b := benchOn(t, []string{server.Broker()}, 1)
	b.publish(0, 5)
	var log logbook
	s := b.subscriber("g", kgo.SessionTimeout(time.Minute), kgo.HeartbeatInterval(10*time.Second))
	s.Logger = log.Logger()
	messages := b.subscribe(s)
	first := receive(t, messages)
	must(t, server.Freeze())
	first.Ack()
	for range 4 {
		receive(t, messages).Ack()
	}
	log.await(t, "cannot commit offsets")
	must(t, server.Thaw())
	b.awaitCommitted("g", 5)
	log.await(t, "committing offsets again")
}
