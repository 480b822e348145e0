package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/kafka"
	"github.com/oncemill/oncemill/internal/delivery"
	"github.com/oncemill/oncemill/middleware"
)

func number(t testing.TB, msg *message.Message) int {
	t.Helper()
	n, err := strconv.Atoi(string(msg.Payload))
	must(t, err)
	return n
}

func TestAPartitionIsHandledInOrderAndOneAtATime(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	b.publish(0, 50)
	messages := b.subscribe(b.subscriber("g"))
	for i := range 50 {
		msg := receive(t, messages)
		if number(t, msg) != i {
			t.Fatalf("got %s, want %d", msg.Payload, i)
		}
		if i%10 == 0 {
			nothing(t, messages, 20*time.Millisecond)
		}
		if i%7 == 3 { // a failure holds up the others
			msg.Nack()
			again := receive(t, messages)
			if number(t, again) != i {
				t.Fatalf("got %s, want %d again", again.Payload, i)
			}
			if d, _ := kafka.FromContext(again.Context()); d.Attempt != 2 {
				t.Errorf("attempt %d", d.Attempt)
			}
			msg = again
		}
		msg.Ack()
	}
	b.awaitCommitted("g", 50)
}

func TestMoreInFlightKeepTheOrderOfEachKey(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	const keys, each = 5, 40
	for i := range keys * each {
		key := fmt.Append(nil, "key", i%keys)
		if i%keys == 1 {
			key = []byte{} // a key, too
		}
		b.store(&kgo.Record{Key: key, Value: fmt.Append(nil, i/keys)})
	}
	s := b.subscriber("g")
	s.MaxInFlight = 64
	messages := b.subscribe(s)
	// One of each key, at the same time.
	first := make(map[string]*message.Message)
	for range keys {
		msg := receive(t, messages)
		d, _ := kafka.FromContext(msg.Context())
		if first[string(d.Key)] != nil {
			t.Fatalf("two messages of %s are in flight", d.Key)
		}
		first[string(d.Key)] = msg
	}
	nothing(t, messages, 50*time.Millisecond)
	// A key that fails does not hold up the others.
	stuck := first["key0"]
	next := make(map[string]int)
	for key, msg := range first {
		if key != "key0" {
			next[key] = 1
			msg.Ack()
		}
	}
	for range (keys - 1) * (each - 1) {
		msg := receive(t, messages)
		d, _ := kafka.FromContext(msg.Context())
		if key := string(d.Key); number(t, msg) != next[key] {
			t.Fatalf("%s: got %s, want %d", key, msg.Payload, next[key])
		}
		next[string(d.Key)]++
		msg.Ack()
	}
	// Nothing may be committed beyond the message that is not finished.
	time.Sleep(3 * kafka.DefaultCommitInterval)
	if n := b.committed("g"); n != 0 {
		t.Errorf("committed up to %d, with offset 0 unfinished", n)
	}
	stuck.Ack()
	for i := 1; i < each; i++ {
		msg := receive(t, messages)
		if number(t, msg) != i {
			t.Fatalf("key0: got %s, want %d", msg.Payload, i)
		}
		msg.Ack()
	}
	b.awaitCommitted("g", keys*each)
}

func TestRecordsWithoutKeyRunAtTheSameTime(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	b.publish(0, 20)
	s := b.subscriber("g")
	s.MaxInFlight = 10
	messages := b.subscribe(s)
	var held []*message.Message
	for range 10 {
		held = append(held, receive(t, messages))
	}
	nothing(t, messages, 50*time.Millisecond)
	slices.Reverse(held)
	for _, msg := range held[:9] {
		msg.Ack()
	}
	for range 9 {
		receive(t, messages).Ack()
	}
	time.Sleep(3 * kafka.DefaultCommitInterval)
	if n := b.committed("g"); n != 0 {
		t.Errorf("committed up to %d, with offset 0 unfinished", n)
	}
	held[9].Ack()
	receive(t, messages).Ack()
	b.awaitCommitted("g", 20)
}

func TestTheContextSaysWhereAMessageIsAndWhoseTurnItIs(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	b.store(
		&kgo.Record{Key: []byte("k"), Value: []byte("a"), Headers: []kgo.RecordHeader{{Key: "h", Value: []byte("1")}, {Key: "h", Value: []byte("2")}}},
		&kgo.Record{Key: []byte("k"), Value: nil},
	)
	topics, err := b.admin.ListTopics(within(t), b.topic)
	must(t, err)
	id := topics[b.topic].ID
	messages := b.subscribe(b.subscriber("g"))
	first := receive(t, messages)
	d, ok := kafka.FromContext(first.Context())
	if !ok || d.Topic != b.topic || d.TopicID != [16]byte(id) || d.Partition != 0 || d.Offset != 0 || string(d.Key) != "k" || len(d.Headers) != 2 || d.Attempt != 1 || time.Since(d.Time) > time.Hour {
		t.Errorf("the delivery is %+v", d)
	}
	if first.Metadata["h"] != "1" || first.Metadata["h#2"] != "2" || first.UUID != "" {
		t.Errorf("metadata %v, UUID %q", first.Metadata, first.UUID)
	}
	info, _ := delivery.From(first.Context())
	if want := fmt.Sprintf("kafka:%x:0:0", id[:]); info.Position != want {
		t.Errorf("position %q, want %q", info.Position, want)
	}
	if info.Turn == nil || info.Turn.Number != 1 || info.Turn.Before != nil {
		t.Errorf("the first one's turn is %+v", info.Turn)
	}
	if key, err := kafka.ByRecordKey(first); key != "k" || err != nil {
		t.Errorf("key %q, %v", key, err)
	}
	first.Ack()
	tombstone := receive(t, messages)
	if tombstone.Payload != nil {
		t.Errorf("a tombstone has the payload %q", tombstone.Payload)
	}
	next, _ := delivery.From(tombstone.Context())
	if next.Turn == nil || next.Turn.Line != info.Turn.Line || next.Turn.Number != 2 {
		t.Fatalf("the second one's turn is %+v, the first one's was %+v", next.Turn, info.Turn)
	}
	select {
	case <-next.Turn.Before:
	default:
		t.Error("the first one is acknowledged, but the second one's turn has not come")
	}
	select {
	case <-first.Context().Done():
	case <-time.After(patience):
		t.Error("the context of an acknowledged message does not end")
	}
	tombstone.Ack()
}

func TestCloseCommitsWhatIsFinishedAndLeavesTheGroup(t *testing.T) {
	t.Parallel()
	b := newBench(t, 2)
	b.publish(0, 100)
	s := b.subscriber("g", kgo.SessionTimeout(5*time.Minute), kgo.RebalanceTimeout(5*time.Minute))
	s.CommitInterval = time.Hour
	messages := b.subscribe(s)
	for range 60 {
		receive(t, messages).Ack()
	}
	slow := receive(t, messages)
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	<-slow.Context().Done()
	select {
	case <-closed:
		t.Fatal("Close does not wait for a message that is being handled")
	case <-time.After(100 * time.Millisecond):
	}
	slow.Ack()
	must(t, <-closed)
	if _, open := <-messages; open {
		t.Error("the channel is open")
	}
	if n := b.committed("g"); n != 61 {
		t.Errorf("%d are committed, want 61", n)
	}
	// With sessions of minutes, only a member that has left is not waited for.
	heir := b.subscribe(b.subscriber("g"))
	for range 39 {
		receive(t, heir).Ack()
	}
	b.awaitCommitted("g", 100)
}

func TestCloseDoesNotWaitLongerThanDrainTimeout(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	b.publish(0, 3)
	var log logbook
	s := b.subscriber("g")
	s.DrainTimeout, s.Logger = 200*time.Millisecond, log.Logger()
	messages := b.subscribe(s)
	receive(t, messages).Ack()
	receive(t, messages) // and no ack
	must(t, s.Close())
	log.await(t, "not acknowledged within DrainTimeout")
	if n := b.committed("g"); n != 1 {
		t.Errorf("%d are committed, want 1", n)
	}
}

func TestWithoutAGroupEverySubscribeGetsEverything(t *testing.T) {
	t.Parallel()
	b := newBench(t, 3)
	b.publish(0, 30)
	s := b.subscriber("")
	for range 2 {
		messages := b.subscribe(s)
		for range 30 {
			receive(t, messages).Ack()
		}
		nothing(t, messages, 20*time.Millisecond)
	}
}

// A buffered counts the records of partition 0 that were taken out of the client.
type buffered struct{ records atomic.Int64 }

func (b *buffered) OnFetchRecordUnbuffered(r *kgo.Record, polled bool) {
	if polled && r.Partition == 0 {
		b.records.Add(1)
	}
}

// A partition that stands still must neither keep the others from being read nor
// fill the memory, and goes on when it can.
func TestAPartitionThatStandsStillDoesNotHoldUpTheOthers(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ each, size, most int }{
		"many":  {12_000, 500, 9000}, // a fetch has 2,000
		"large": {200, 100_000, 100},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, 2)
			b.spread(2, 0, 2*test.each, func(int) []byte { return make([]byte, test.size) })
			count := new(buffered)
			messages := b.subscribe(b.subscriber("g", kgo.WithHooks(count)))
			var stuck *message.Message
			for handled := 0; handled < test.each; {
				msg := receive(t, messages)
				if d, _ := kafka.FromContext(msg.Context()); d.Partition == 0 {
					stuck = msg
					continue
				}
				msg.Ack()
				handled++
			}
			nothing(t, messages, 50*time.Millisecond)
			if n := count.records.Load(); n > int64(test.most) {
				t.Errorf("%d records are held of a partition that stands still", n)
			}
			stuck.Ack()
			for range test.each - 1 {
				receive(t, messages).Ack()
			}
			b.awaitCommitted("g", 2*int64(test.each))
		})
	}
}

// A partition that was not fetched from when it was given away is fetched from
// when it comes back.
func TestAPausedPartitionThatComesBackIsFetchedFrom(t *testing.T) {
	t.Parallel()
	b := newBench(t, 2)
	const each = 5000
	b.spread(2, 0, 2*each, func(int) []byte { return make([]byte, 1000) })
	first := b.subscribe(b.subscriber("g"))
	held := []*message.Message{receive(t, first), receive(t, first)}
	time.Sleep(200 * time.Millisecond) // until both are paused
	second := b.subscriber("g")
	moved := receive(t, b.subscribe(second))
	go moved.Nack() // nothing is finished
	must(t, second.Close())
	for _, msg := range held {
		msg.Ack()
	}
	go func() {
		for msg := range first {
			msg.Ack()
		}
	}()
	b.awaitCommitted("g", 2*each)
}

func TestNothingIsHandedOutWhileWhatHandlersNeedIsAway(t *testing.T) {
	t.Parallel()
	b := newBench(t, 2)
	b.spread(2, 0, 40, decimal) // so that one is on offer while the other is handled
	var log logbook
	s := b.subscriber("g")
	s.Logger = log.Logger()
	messages := b.subscribe(s)
	msg := receive(t, messages)
	info, _ := delivery.From(msg.Context())
	var mu sync.Mutex
	away, probes := true, 0
	info.Hold(func(context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		probes++
		if away {
			return fmt.Errorf("away")
		}
		return nil
	})
	log.await(t, "handing out no messages")
	msg.Nack()
	nothing(t, messages, 200*time.Millisecond)
	mu.Lock()
	away = false
	mu.Unlock()
	for range 40 {
		receive(t, messages).Ack()
	}
	log.await(t, "handing out messages again")
	b.awaitCommitted("g", 40)
}

func TestATransactionThatIsAbortedIsNotDelivered(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	producer := b.connect(kgo.TransactionalID(b.topic))
	for i, end := range []kgo.TransactionEndTry{kgo.TryAbort, kgo.TryCommit} {
		must(t, producer.BeginTransaction())
		must(t, producer.ProduceSync(within(t), &kgo.Record{Topic: b.topic, Value: fmt.Append(nil, i)}).FirstErr())
		must(t, producer.EndTransaction(within(t), end))
	}
	b.publish(2, 3)
	messages := b.subscribe(b.subscriber("g"))
	for i := 1; i < 3; i++ {
		msg := receive(t, messages)
		if number(t, msg) != i {
			t.Errorf("got %s, want %d", msg.Payload, i)
		}
		msg.Ack()
	}
	b.awaitCommitted("g", 5) // the offsets have gaps where a transaction ended
}

func TestMembersComeAndGoWithoutLossAndWithFewDuplicates(t *testing.T) {
	t.Parallel()
	b := newBench(t, 6)
	b.publish(0, 3000)
	var mu sync.Mutex
	seen := make(map[string]int)
	var members sync.WaitGroup
	join := func() *kafka.Subscriber {
		s := b.subscriber("g")
		messages := b.subscribe(s)
		members.Go(func() {
			for msg := range messages {
				mu.Lock()
				seen[string(msg.Payload)]++
				mu.Unlock()
				time.Sleep(time.Millisecond)
				msg.Ack()
			}
		})
		return s
	}
	first, second := join(), join()
	until(t, "the work has begun", func() bool { mu.Lock(); defer mu.Unlock(); return len(seen) > 300 })
	third := join()
	until(t, "the work goes on", func() bool { mu.Lock(); defer mu.Unlock(); return len(seen) > 1000 })
	must(t, first.Close())
	until(t, "the work goes on", func() bool { mu.Lock(); defer mu.Unlock(); return len(seen) > 2000 })
	join()
	must(t, second.Close())
	b.awaitCommitted("g", 3000)
	must(t, third.Close())
	mu.Lock()
	defer mu.Unlock()
	twice := 0
	for _, n := range seen {
		twice += n - 1
	}
	// Handlers are waited for when a partition moves, and what they have finished
	// is committed first.
	if len(seen) != 3000 || twice > 0 {
		t.Errorf("%d messages of 3000, %d of them again", len(seen), twice)
	}
}

func TestATopicThatIsDeletedAndMadeAgainIsReadFromItsBeginning(t *testing.T) {
	t.Parallel()
	for _, group := range []string{"g", ""} {
		t.Run("group "+group, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, 1)
			b.publish(0, 20)
			var log logbook
			s := b.subscriber(group)
			s.Logger = log.Logger()
			messages := b.subscribe(s)
			positions := make(map[string]bool)
			for range 10 {
				msg := receive(t, messages)
				key, err := middleware.ByPosition(msg)
				must(t, err)
				positions[key] = true
				msg.Ack()
			}
			if group != "" {
				b.awaitCommitted(group, 10)
			}
			old := receive(t, messages)
			b.recreate(1)
			fresh := b.connect()
			for i := 100; i < 130; i++ { // more than the old one had
				must(t, fresh.ProduceSync(within(t), &kgo.Record{Topic: b.topic, Value: fmt.Append(nil, i)}).FirstErr())
			}
			log.await(t, "the topic is not the one that it was")
			old.Ack() // of no interest any more
			for i := 100; i < 130; i++ {
				msg := receive(t, messages)
				if number(t, msg) != i {
					t.Fatalf("got %s, want %d", msg.Payload, i)
				}
				key, err := middleware.ByPosition(msg)
				must(t, err)
				if positions[key] {
					t.Errorf("position %s was one of the old topic", key)
				}
				positions[key] = true
				msg.Ack()
			}
			if group != "" {
				b.awaitCommitted(group, 30)
			}
		})
	}
}

// Brokers that do not tell topics apart give no position, rather than one that
// two messages could have.
func TestWithoutATopicIDThereIsNoPosition(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	b.publish(0, 1)
	old := kversion.V2_8_0()
	messages := b.subscribe(b.subscriber("g", kgo.MaxVersions(old)))
	msg := receive(t, messages)
	_, err := middleware.ByPosition(msg)
	complains(t, err, oncemill.ErrNoKey.Error(), "position")
	msg.Ack()
}

func TestTimestampsCanBeIgnored(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	long := time.Now().Add(-1000 * time.Hour).Truncate(time.Millisecond)
	b.store(&kgo.Record{Timestamp: long})
	for _, ignore := range []bool{false, true} {
		s := b.subscriber("")
		s.IgnoreTimestamps = ignore
		msg := receive(t, b.subscribe(s))
		d, _ := kafka.FromContext(msg.Context())
		info, _ := delivery.From(msg.Context())
		if !d.Time.Equal(long) || info.Time.IsZero() != ignore {
			t.Errorf("ignored: %v; delivery's time %v, for the watermark %v", ignore, d.Time, info.Time)
		}
		msg.Ack()
		must(t, s.Close())
	}
}

func TestWrongFieldsAreNamed(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	for name, test := range map[string]struct {
		change func(*kafka.Subscriber)
		topic  string
		words  []string
	}{
		"no client":      {func(s *kafka.Subscriber) { s.Client = nil }, b.topic, []string{"Subscriber.Client is nil", "kgo.NewClient"}},
		"in flight":      {func(s *kafka.Subscriber) { s.MaxInFlight = -1 }, b.topic, []string{"MaxInFlight is -1"}},
		"ahead":          {func(s *kafka.Subscriber) { s.Ahead = -1 }, b.topic, []string{"Subscriber.Ahead is -1", "Inbox.Batch"}},
		"far ahead":      {func(s *kafka.Subscriber) { s.Ahead = 2001 }, b.topic, []string{"Subscriber.Ahead is 2001", "2000"}},
		"ahead and more": {func(s *kafka.Subscriber) { s.Ahead, s.MaxInFlight = 100, 41 }, b.topic, []string{"Subscriber.Ahead is 100", "MaxInFlight 41", "lower one"}},
		"interval":       {func(s *kafka.Subscriber) { s.CommitInterval = -1 }, b.topic, []string{"CommitInterval is -1ns"}},
		"drain":          {func(s *kafka.Subscriber) { s.DrainTimeout = -1 }, b.topic, []string{"DrainTimeout is -1ns"}},
		"group":          {func(s *kafka.Subscriber) { s.Group = "a\x00b" }, b.topic, []string{"Subscriber.Group"}},
		"client with a group": {func(s *kafka.Subscriber) {
			s.Client = b.connect(kgo.ConsumerGroup("other"), kgo.ConsumeTopics(b.topic))
		}, b.topic, []string{"kgo.ConsumeTopics"}},
		"no topic":      {func(*kafka.Subscriber) {}, "", []string{"no topic"}},
		"bad topic":     {func(*kafka.Subscriber) {}, "a b", []string{`topic "a b"`, "letters"}},
		"unknown topic": {func(*kafka.Subscriber) {}, "unknown", []string{`topic "unknown" does not exist`, "kafka-topics.sh", "--create"}},
	} {
		s := b.subscriber("g")
		s.Logger = slog.New(slog.DiscardHandler)
		test.change(s)
		_, err := s.Subscribe(within(t), test.topic)
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		complains(t, err, append(test.words, "oncemill: kafka:")...)
	}
	s := b.subscriber("g")
	must(t, s.Close())
	if _, err := s.Subscribe(within(t), b.topic); err != kafka.ErrClosed {
		t.Errorf("after Close: %v", err)
	}
}

// A partition is taken away while a message of it is being handled: the message's
// context ends, and what its handler then says is of no interest.
func TestARevokedPartitionsMessagesEndAndAreNotCommitted(t *testing.T) {
	t.Parallel()
	b := newBench(t, 2)
	b.spread(2, 0, 10, decimal)
	first := b.subscribe(b.subscriber("g"))
	held := []*message.Message{receive(t, first), receive(t, first)} // one of each partition
	second := b.subscribe(b.subscriber("g"))
	moved := receive(t, second)
	at, _ := kafka.FromContext(moved.Context())
	var stays *message.Message
	for _, msg := range held {
		d, _ := kafka.FromContext(msg.Context())
		if d.Partition != at.Partition {
			stays = msg
			continue
		}
		if d.Offset != at.Offset {
			t.Errorf("offset %d was not finished, but the next owner begins at %d", d.Offset, at.Offset)
		}
		if msg.Context().Err() == nil {
			t.Error("the partition is another member's, and the message's context has not ended")
		}
		msg.Ack()
	}
	if stays == nil || stays.Context().Err() != nil {
		t.Fatal("the context of a message whose partition has stayed has ended")
	}
	nothing(t, first, 3*kafka.DefaultCommitInterval) // nor is the next one handed out
	if n := b.committed("g"); n != 0 {
		t.Errorf("%d are committed, and none is finished", n)
	}
	stays.Ack()
	moved.Ack()
	for range 4 {
		receive(t, first).Ack()
		receive(t, second).Ack()
	}
	b.awaitCommitted("g", 10)
}

// A static member that is started again in time gets its partitions back without
// a rebalance; one Subscriber may be such a member for several topics.
func TestAStaticMemberMaySubscribeToSeveralTopics(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	other := b.topic + "-other"
	b.createTopic(other, 1)
	s := b.subscriber("g", kgo.InstanceID("member-1"))
	messages := b.subscribe(s)
	others, err := s.Subscribe(within(t), other)
	must(t, err)
	for i := range 5 {
		b.publish(i, i+1)
		must(t, b.client.ProduceSync(within(t), &kgo.Record{Topic: other, Value: fmt.Append(nil, i)}).FirstErr())
		receive(t, messages).Ack()
		receive(t, others).Ack()
	}
}

// A hold that is on when the topic is made anew ends with the session in which it
// was asked for.
func TestAHoldDoesNotOutliveItsSession(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	b.publish(0, 5)
	var log logbook
	s := b.subscriber("g")
	s.Logger = log.Logger()
	messages := b.subscribe(s)
	msg := receive(t, messages)
	info, _ := delivery.From(msg.Context())
	var mu sync.Mutex
	away := true
	info.Hold(func(context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		if away {
			return errors.New("away")
		}
		return nil
	})
	log.await(t, "handing out no messages")
	msg.Nack()
	b.recreate(1)
	fresh := b.connect()
	must(t, fresh.ProduceSync(within(t), &kgo.Record{Topic: b.topic, Value: []byte("7")}).FirstErr())
	log.await(t, "the topic is not the one that it was")
	mu.Lock()
	away = false
	mu.Unlock()
	got := receive(t, messages)
	if string(got.Payload) != "7" {
		t.Errorf("got %q", got.Payload)
	}
	got.Ack()
}

// To be let into a group can take as long as its slowest member lets it. Close does
// not wait for that.
func TestCloseDoesNotWaitForARebalance(t *testing.T) {
	t.Parallel()
	b := newBench(t, 2)
	b.publish(0, 10)
	slow := b.connect(kgo.ConsumerGroup("g-"+b.topic), kgo.ConsumeTopics(b.topic), kgo.BlockRebalanceOnPoll(), kgo.RebalanceTimeout(60*time.Second))
	until(t, "the slow one has records", func() bool { f := slow.PollFetches(within(t)); return f.NumRecords() > 0 })
	defer slow.CloseAllowingRebalance()
	s := b.subscriber("g", kgo.RebalanceTimeout(60*time.Second))
	b.subscribe(s)
	time.Sleep(2 * time.Second) // the join is under way
	begun := time.Now()
	must(t, s.Close())
	if took := time.Since(begun); took > 12*time.Second {
		t.Errorf("Close took %v", took)
	}
}

// A rebalance in the middle of a drain, as when processes of a group are replaced:
// what is being handled gets its time to end.
func TestARebalanceDuringADrainWaitsForHandlers(t *testing.T) {
	t.Parallel()
	b := newBench(t, 2)
	b.spread(2, 0, 2, decimal)
	first := b.subscriber("g")
	messages := b.subscribe(first)
	one, other := receive(t, messages), receive(t, messages)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_ = first.Close()
	}()
	<-one.Context().Done() // it drains
	successor := b.subscribe(b.subscriber("g"))
	select {
	case msg := <-successor:
		t.Errorf("message %s is handed out again while its handler has time left", msg.Payload)
		msg.Ack()
	case <-time.After(2500 * time.Millisecond):
	}
	one.Ack()
	other.Ack()
	<-closed
	b.awaitCommitted("g", 2)
	nothing(t, successor, time.Second)
}

// A commitGate is a logger that brings two commits of one client into an order
// that they may also have by chance: the first that begins is held up until the
// second has ended, and the goroutine of the second goes on a moment later.
type commitGate struct {
	mu      sync.Mutex
	armed   bool
	begun   int
	ended   int
	waiting chan struct{}
	over    chan struct{}
}

func (g *commitGate) Level() kgo.LogLevel { return kgo.LogLevelDebug }

func (g *commitGate) Log(_ kgo.LogLevel, msg string, _ ...any) {
	switch msg {
	case "in CommitOffsetsSync":
		g.mu.Lock()
		first := false
		if g.armed {
			g.begun++
			first = g.begun == 1
		}
		g.mu.Unlock()
		if first {
			close(g.waiting)
			select {
			case <-g.over:
			case <-time.After(3 * time.Second): // the other waits for this one, as it should
			}
		}
	case "left CommitOffsetsSync":
		g.mu.Lock()
		second := false
		if g.armed {
			g.ended++
			second = g.ended == 1
		}
		g.mu.Unlock()
		if second {
			close(g.over)
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// Two commits at the same time: the regular one is slow, and a partition is given
// away, for which what is finished by then is committed.
func TestAnOlderCommitDoesNotOvertakeTheLastOne(t *testing.T) {
	t.Parallel()
	b := newBench(t, 2)
	b.spread(2, 0, 6, decimal)
	gate := &commitGate{waiting: make(chan struct{}), over: make(chan struct{})}
	s := b.subscriber("g", kgo.WithLogger(gate))
	s.CommitInterval = time.Second
	messages := b.subscribe(s)
	for range 2 { // the first is committed at once, and then none for a second
		receive(t, messages).Ack()
	}
	gate.mu.Lock()
	gate.armed = true
	gate.mu.Unlock()
	for range 2 {
		receive(t, messages).Ack()
	}
	<-gate.waiting
	for range 2 {
		receive(t, messages).Ack()
	}
	successor := b.subscribe(b.subscriber("g"))
	select {
	case msg := <-successor:
		t.Fatalf("message %s, which was acknowledged and committed before the handover, comes again", msg.Payload)
	case <-time.After(4 * time.Second):
	}
	b.awaitCommitted("g", 6)
}
