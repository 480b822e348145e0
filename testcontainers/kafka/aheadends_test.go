package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/consumers/kafka"
	"github.com/oncemill/oncemill/internal/delivery"
)

// Close in the middle of a batch: what has not begun is given back, what has may
// end, and the next owner goes on behind it.
func TestCloseGivesBackWhatIsAhead(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	b.publish(0, 40)
	s := b.subscriber("g")
	s.Ahead = 16
	messages, out := b.ahead(s, 16)
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	for _, msg := range out {
		noted(t, msg)
	}
	for _, msg := range out[3:] {
		msg.Nack()
	}
	select {
	case msg, open := <-messages:
		t.Fatalf("a message arrives: %v %v", msg, open)
	case <-closed:
		t.Fatal("Close does not wait for what is being handled")
	case <-time.After(100 * time.Millisecond):
	}
	for _, msg := range out[:3] {
		msg.Ack()
	}
	must(t, <-closed)
	if n := b.committed("g"); n != 3 {
		t.Errorf("%d are committed, want 3", n)
	}
	heir := b.subscriber("g")
	heir.Ahead = 16
	got := b.subscribe(heir)
	b.acks(got, 3, 40)
	b.awaitCommitted("g", 40)
}

// A partition is taken away with several of its messages out: their contexts end,
// and nobody's turn comes, or a message could be handled here before those that are
// handled elsewhere.
func TestARevokedPartitionsMessagesAheadEndAndNotInTheirTurn(t *testing.T) {
	t.Parallel()
	b := newBench(t, 2)
	b.spread(2, 0, 100, decimal)
	s := b.subscriber("g")
	s.Ahead = 16
	first, out := b.ahead(s, 32)
	heir := b.subscriber("g")
	heir.Ahead = 16
	second := b.subscribe(heir)
	moved := b.keep(receive(t, second))
	at, _ := kafka.FromContext(moved.Context())
	if at.Offset != 0 {
		t.Errorf("nothing is finished, and the next owner begins at %d", at.Offset)
	}
	lost := 0
	for _, msg := range out {
		switch d, _ := kafka.FromContext(msg.Context()); {
		case d.Partition != at.Partition && msg.Context().Err() != nil:
			t.Fatal("the context of a message whose partition has stayed has ended")
		case d.Partition != at.Partition:
			msg.Ack()
		default:
			lost++
			noted(t, msg)
			msg.Ack() // of no interest any more
			if d.Offset > 0 && begun(b.turn(msg)) {
				t.Errorf("the turn of offset %d has come, and those before it are handled elsewhere", d.Offset)
			}
		}
	}
	moved.Ack()
	for range 34 {
		b.keep(receive(t, first)).Ack()
	}
	for range 49 {
		b.keep(receive(t, second)).Ack()
	}
	b.awaitCommitted("g", 100)
	if lost != 16 {
		t.Errorf("%d messages were out of the partition that moved", lost)
	}
}

// A handover waits for what has begun, but not for all that is ahead of it.
func TestAHandoverGivesBackWhatWaitsForItsTurn(t *testing.T) {
	t.Parallel()
	b := newBench(t, 2)
	b.spread(2, 0, 100, decimal)
	s := b.subscriber("g")
	s.Ahead = 16
	_, out := b.ahead(s, 32)
	lines := make(map[int32][]*message.Message)
	for _, msg := range out {
		d, _ := kafka.FromContext(msg.Context())
		lines[d.Partition] = append(lines[d.Partition], msg)
	}
	heir := b.subscriber("g")
	heir.Ahead = 16
	messages := b.subscribe(heir)
	var line []*message.Message
	until(t, "a partition is given away", func() bool {
		for _, line = range lines {
			if line[1].Context().Err() != nil {
				return true
			}
		}
		return false
	})
	begun := line[0]
	for _, msg := range line[1:] {
		noted(t, msg)
		msg.Nack()
	}
	if begun.Context().Err() != nil {
		t.Error("the context of the one that has begun has ended")
	}
	begun.Ack()
	first := b.keep(receive(t, messages))
	was, _ := kafka.FromContext(begun.Context())
	if d, _ := kafka.FromContext(first.Context()); d.Partition != was.Partition || d.Offset != 1 {
		t.Errorf("the next owner gets offset %d of partition %d", d.Offset, d.Partition)
	}
	for _, msg := range append(out, first) { // so that nobody has to be waited for
		msg.Ack()
	}
}

// What is out when the subscriber has to pause stays out; what of it is nacked
// comes again in order.
func TestAPauseWithMessagesAhead(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	b.publish(0, 30)
	var log logbook
	s := b.subscriber("g")
	s.Ahead, s.Logger = 8, log.Logger()
	messages, out := b.ahead(s, 8)
	var back atomic.Bool
	info, _ := delivery.From(out[0].Context())
	info.Hold(func(context.Context) error {
		if back.Load() {
			return nil
		}
		return errors.New("away")
	})
	log.await(t, "handing out no messages")
	out[0].Ack()
	for _, msg := range out[1:] {
		msg.Nack()
	}
	nothing(t, messages, 200*time.Millisecond)
	back.Store(true)
	b.acks(messages, 1, 30)
	b.awaitCommitted("g", 30)
}

// A keeper stands in for whoever keeps the order: its effects are in their turn, if
// the turns are right. Some fail, and now and then all that wait are given back.
type keeper struct {
	mu     sync.Mutex
	random *rand.Rand
	next   map[int32]int64 // by partition, the offset whose effect comes next
	early  []string
	away   chan struct{} // closed when all are given back
}

func (k *keeper) handle(msg *message.Message) {
	info, _ := delivery.From(msg.Context())
	info.Turn.Kept()
	k.mu.Lock()
	away := k.away
	k.mu.Unlock()
	if before := info.Turn.Before; before != nil {
		select {
		case <-before:
		case <-away:
			msg.Nack()
			return
		case <-msg.Context().Done():
		}
	}
	if msg.Context().Err() != nil || !k.effect(msg) {
		msg.Nack()
		return
	}
	msg.Ack()
}

// effect returns false for a failure.
func (k *keeper) effect(msg *message.Message) bool {
	d, _ := kafka.FromContext(msg.Context())
	k.mu.Lock()
	defer k.mu.Unlock()
	switch roll := k.random.IntN(200); {
	case roll == 0:
		close(k.away)
		k.away = make(chan struct{})
		return false
	case roll < 5:
		return false
	}
	switch next := k.next[d.Partition]; {
	case d.Offset > next:
		k.early = append(k.early, fmt.Sprintf("offset %d of partition %d, when it was %d's turn", d.Offset, d.Partition, next))
	case d.Offset == next:
		k.next[d.Partition]++
	}
	return true
}

func (k *keeper) handled() (sum int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, n := range k.next {
		sum += n
	}
	return sum
}

func TestMembersComeAndGoWithMessagesAheadInOrder(t *testing.T) {
	t.Parallel()
	b := newBench(t, 6)
	const all = 12_000
	b.spread(6, 0, all, decimal)
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	k := &keeper{random: rand.New(rand.NewPCG(seed, 0)), next: make(map[int32]int64), away: make(chan struct{})}
	var members, handlers sync.WaitGroup
	join := func() *kafka.Subscriber {
		s := b.subscriber("g")
		s.Ahead = 64
		messages := b.subscribe(s)
		members.Go(func() {
			for msg := range messages {
				handlers.Go(func() { k.handle(msg) })
			}
		})
		return s
	}
	present := []*kafka.Subscriber{join(), join()}
	for turn := range 4 {
		until(t, "the work goes on", func() bool { return k.handled() > int64(all/6*(turn+1)) })
		present = append(present, join())
		must(t, present[turn].Close())
	}
	b.awaitCommitted("g", all)
	for _, s := range present[4:] {
		must(t, s.Close())
	}
	members.Wait()
	handlers.Wait()
	if n := k.handled(); n != all || len(k.early) > 0 {
		t.Errorf("%d effects of %d, %d of them too early: %.10q", n, all, len(k.early), k.early)
	}
}
