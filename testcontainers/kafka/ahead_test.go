package kafka_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/consumers/kafka"
	"github.com/oncemill/oncemill/internal/delivery"
)

// ahead subscribes and receives the first n messages, for which it tells the
// subscriber that their order is kept.
func (b *bench) ahead(s *kafka.Subscriber, n int) (<-chan *message.Message, []*message.Message) {
	b.t.Helper()
	messages := b.subscribe(s)
	var out []*message.Message
	for range n {
		out = append(out, b.keep(receive(b.t, messages)))
	}
	return messages, out
}

func (b *bench) keep(msg *message.Message) *message.Message {
	b.t.Helper()
	turn := b.turn(msg)
	if turn.Kept == nil {
		b.t.Fatal("nobody asks whether the order is kept")
	}
	turn.Kept()
	return msg
}

// acks receives the messages from one to another, in their order, and acknowledges them.
func (b *bench) acks(messages <-chan *message.Message, from, to int) {
	b.t.Helper()
	for i := from; i < to; i++ {
		msg := b.keep(receive(b.t, messages))
		if number(b.t, msg) != i {
			b.t.Fatalf("got %s, want %d", msg.Payload, i)
		}
		msg.Ack()
	}
}

func (b *bench) turn(msg *message.Message) *delivery.Turn {
	b.t.Helper()
	info, _ := delivery.From(msg.Context())
	if info.Turn == nil {
		b.t.Fatalf("message %s has no turn", msg.Payload)
	}
	return info.Turn
}

// begun reports whether a message's turn has come.
func begun(turn *delivery.Turn) bool {
	select {
	case <-turn.Before:
		return true
	default:
		return turn.Before == nil
	}
}

// noted waits until the subscriber knows what became of a message.
func noted(t testing.TB, msg *message.Message) {
	t.Helper()
	select {
	case <-msg.Context().Done():
	case <-time.After(patience):
		t.Fatalf("message %s: its context does not end", msg.Payload)
	}
}

// nack has a message come again after a delay.
func nack(t testing.TB, msg *message.Message, delay time.Duration) {
	t.Helper()
	info, _ := delivery.From(msg.Context())
	info.Delay.Wish(delay)
	msg.Nack()
	noted(t, msg)
}

func TestMessagesAreHandedOutAheadOnceTheirOrderIsKept(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	b.publish(0, 50)
	s := b.subscriber("g")
	s.Ahead = 16
	messages := b.subscribe(s)
	out := []*message.Message{receive(t, messages)}
	nothing(t, messages, 50*time.Millisecond)
	b.keep(out[0])
	for range 15 {
		out = append(out, b.keep(receive(t, messages)))
	}
	nothing(t, messages, 50*time.Millisecond)
	line := b.turn(out[0]).Line
	for i, msg := range out {
		turn := b.turn(msg)
		if number(t, msg) != i || turn.Line != line || turn.Number != uint64(i+1) || begun(turn) != (i == 0) {
			t.Errorf("message %s in the place of %d has turn %d of line %d, begun: %v", msg.Payload, i, turn.Number, turn.Line, begun(turn))
		}
	}
	// The acks of a batch come in any order.
	for _, i := range []int{2, 1} {
		out[i].Ack()
		noted(t, out[i])
		out = append(out, b.keep(receive(t, messages)))
	}
	if begun(b.turn(out[3])) {
		t.Error("a turn has begun with the first message not acknowledged")
	}
	time.Sleep(3 * kafka.DefaultCommitInterval)
	if n := b.committed("g"); n != 0 {
		t.Errorf("committed up to %d, with offset 0 unfinished", n)
	}
	out[0].Ack()
	noted(t, out[0])
	if !begun(b.turn(out[3])) || begun(b.turn(out[4])) {
		t.Error("three are acknowledged, and it is not the fourth one's turn alone")
	}
	for i := 3; i < 50; i++ {
		if number(t, out[i]) != i {
			t.Fatalf("got %s, want %d", out[i].Payload, i)
		}
		out[i].Ack()
		if len(out) < 50 {
			out = append(out, b.keep(receive(t, messages)))
		}
	}
	b.awaitCommitted("g", 50)
}

// With more in flight, MaxInFlight says how many keys have messages out, and Ahead
// how many each.
func TestAheadIsALimitForEachKey(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	for i := range 40 {
		b.store(&kgo.Record{Key: fmt.Append(nil, "key", i%4), Value: fmt.Append(nil, i/4)})
	}
	s := b.subscriber("g")
	s.MaxInFlight, s.Ahead = 2, 3
	messages, out := b.ahead(s, 6)
	nothing(t, messages, 50*time.Millisecond)
	handled, next := 0, make(map[string]int)
	for len(out) > 0 {
		each := make(map[string]int)
		for _, msg := range out {
			d, _ := kafka.FromContext(msg.Context())
			key := string(d.Key)
			if n := next[key] + each[key]; number(t, msg) != n {
				t.Fatalf("%s: got %s, want %d", key, msg.Payload, n)
			}
			each[key]++
		}
		for key, n := range each {
			if len(each) > 2 || n > 3 {
				t.Errorf("%d of %s and %d keys in all", n, key, len(each))
			}
		}
		first := out[0]
		d, _ := kafka.FromContext(first.Context())
		next[string(d.Key)]++
		first.Ack()
		noted(t, first)
		handled++
		out = out[1:]
		for range min(6, 40-handled) - len(out) { // as many as may be, if two keys have so many
			select {
			case msg := <-messages:
				out = append(out, b.keep(msg))
			case <-time.After(30 * time.Millisecond):
			}
		}
	}
	if handled != 40 {
		t.Errorf("%d messages of 40", handled)
	}
	b.awaitCommitted("g", 40)
}

// Records without a key have no order: they are only counted by MaxInFlight, and
// nobody is asked whether their order is kept.
func TestAheadLeavesRecordsWithoutKeyAlone(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	b.publish(0, 10)
	var log logbook
	s := b.subscriber("g")
	s.MaxInFlight, s.Ahead, s.Logger = 4, 8, log.Logger()
	messages := b.subscribe(s)
	var out []*message.Message
	for i := range 10 {
		for len(out) < min(4, 10-i) {
			out = append(out, receive(t, messages))
		}
		nothing(t, messages, 10*time.Millisecond)
		if info, _ := delivery.From(out[0].Context()); info.Turn != nil {
			t.Error("a message without key has a turn")
		}
		out[0].Ack()
		out = out[1:]
	}
	b.awaitCommitted("g", 10)
	if log.has("Ahead") {
		t.Error(log.String())
	}
}

// A nacked message comes again before whatever follows it, but for what is out.
func TestWhatFollowsANackedMessageWaitsForIt(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	b.publish(0, 12)
	s := b.subscriber("g")
	s.Ahead = 8
	messages, out := b.ahead(s, 8)
	third := b.turn(out[2])
	nack(t, out[2], 500*time.Millisecond)
	nack(t, out[4], time.Millisecond)
	for _, i := range []int{0, 5} {
		out[i].Ack()
		noted(t, out[i])
	}
	nothing(t, messages, 200*time.Millisecond)
	for _, want := range []int{2, 4, 8, 9} {
		msg := b.keep(receive(t, messages))
		d, _ := kafka.FromContext(msg.Context())
		if number(t, msg) != want || want < 8 && d.Attempt != 2 {
			t.Fatalf("got %s, attempt %d, want %d", msg.Payload, d.Attempt, want)
		}
		if want < 8 {
			out[want] = msg
		} else {
			out = append(out, msg)
		}
	}
	again := b.turn(out[2])
	if again.Line != third.Line || again.Number != third.Number || begun(again) {
		t.Errorf("delivered again its turn is %+v, it was %+v", again, third)
	}
	out[1].Ack()
	noted(t, out[1])
	if !begun(again) || begun(b.turn(out[3])) {
		t.Error("it is not its turn when those before it are acknowledged")
	}
	for _, i := range []int{2, 3, 4, 6, 7, 8, 9} {
		out[i].Ack()
	}
	b.acks(messages, 10, 12)
	b.awaitCommitted("g", 12)
}

// A nacked message takes back what is on offer behind it, and waits for its delay
// each time.
func TestANackedMessageWaitsEachTimeAndNothingGoesAheadOfIt(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	b.publish(0, 10)
	s := b.subscriber("g")
	s.Ahead = 8
	messages, out := b.ahead(s, 4)
	for range 3 {
		nack(t, out[1], 300*time.Millisecond)
		time.Sleep(20 * time.Millisecond) // until the fifth is not on offer any more
		nothing(t, messages, 150*time.Millisecond)
		if out[1] = b.keep(receive(t, messages)); number(t, out[1]) != 1 {
			t.Fatalf("got %s, want 1", out[1].Payload)
		}
	}
	for i := 4; i < 10; i++ {
		out[i-4].Ack()
		out = append(out, b.keep(receive(t, messages)))
		if number(t, out[i]) != i {
			t.Fatalf("got %s, want %d", out[i].Payload, i)
		}
	}
	for _, msg := range out[6:] {
		msg.Ack()
	}
	b.awaitCommitted("g", 10)
}

// A key that waits for the delay of its message, with nothing else out, holds up no
// others.
func TestAKeyThatWaitsLeavesItsPlace(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	for _, key := range []string{"a", "a", "b", "c"} {
		b.store(&kgo.Record{Key: []byte(key), Value: []byte("7")})
	}
	for _, ahead := range []int{0, 4} {
		s := b.subscriber("")
		s.MaxInFlight, s.Ahead, s.DrainTimeout = 2, ahead, 100*time.Millisecond
		messages := b.subscribe(s)
		for _, want := range []string{"a", "b"} {
			msg := receive(t, messages)
			d, _ := kafka.FromContext(msg.Context())
			if string(d.Key) != want {
				t.Fatalf("a message of %s arrives", d.Key)
			}
			if want == "a" {
				nack(t, msg, time.Hour)
			}
		}
		if d, _ := kafka.FromContext(receive(t, messages).Context()); string(d.Key) != "c" {
			t.Fatalf("a message of %s arrives", d.Key)
		}
	}
}

// As when the database goes away under a batch.
func TestABatchThatIsNackedComesAgainInOrder(t *testing.T) {
	t.Parallel()
	b := newBench(t, 2)
	b.spread(2, 0, 200, decimal)
	s := b.subscriber("g")
	s.Ahead = 32
	messages := b.subscribe(s)
	for round := range 4 {
		var out []*message.Message
		next := make(map[int32]int64)
		for range 64 {
			msg := b.keep(receive(t, messages))
			d, _ := kafka.FromContext(msg.Context())
			if d.Offset != next[d.Partition] {
				t.Fatalf("round %d: offset %d of partition %d, want %d", round, d.Offset, d.Partition, next[d.Partition])
			}
			next[d.Partition]++
			out = append(out, msg)
		}
		var nacks sync.WaitGroup
		for i := len(out) - 1; i >= 0; i-- {
			nacks.Go(func() { out[i].Nack() })
		}
		nacks.Wait()
		for _, msg := range out {
			noted(t, msg)
		}
	}
	if n := b.committed("g"); n != 0 {
		t.Errorf("%d are committed", n)
	}
	for range 200 {
		b.keep(receive(t, messages)).Ack()
	}
	b.awaitCommitted("g", 200)
}
