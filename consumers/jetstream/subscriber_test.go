package jetstream_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/internal/delivery"
)

func TestAMessageCarriesItsDelivery(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	before := time.Now().Add(-time.Minute)
	raw := nats.NewMsg(b.topic("orders"))
	raw.Data = []byte("hello")
	raw.Header.Set(jetstream.UUIDHeader, "uuid-1")
	raw.Header.Set(nats.MsgIdHdr, "id-1")
	raw.Header.Set("tenant", "acme")
	b.store(raw)

	msg := receive(t, b.subscribe(b.subscriber("billing"), b.topic("*")))
	if msg.UUID != "uuid-1" || string(msg.Payload) != "hello" || msg.Metadata.Get("tenant") != "acme" || msg.Metadata.Get(nats.MsgIdHdr) != "id-1" {
		t.Errorf("message %q %q with metadata %v", msg.UUID, msg.Payload, msg.Metadata)
	}
	if _, ok := msg.Metadata[jetstream.UUIDHeader]; ok {
		t.Error("the UUID is in the metadata too")
	}
	d, ok := jetstream.FromContext(msg.Context())
	if !ok || d.Stream != b.stream || d.Consumer != "billing~"+b.prefix+"~=2A" || d.Subject != b.topic("orders") ||
		d.StreamSequence != 1 || d.ConsumerSequence != 1 || d.Attempt != 1 || d.MsgID != "id-1" || d.Header.Get("tenant") != "acme" || d.Time.Before(before) {
		t.Errorf("delivery %+v", d)
	}
	info, _ := delivery.From(msg.Context())
	if !strings.HasPrefix(info.Position, "jetstream:"+b.stream+":") || !strings.HasSuffix(info.Position, ":1") ||
		!info.Time.Equal(d.Time) || info.Attempt != 1 || info.Hold == nil {
		t.Errorf("info %+v", info)
	}
	msg.Ack()
	if _, ok := jetstream.FromContext(context.Background()); ok {
		t.Error("an empty context has a Delivery")
	}
}

func TestARedeliveryCountsItsAttempts(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.publish(b.topic("a"), 1)
	s := b.subscriber("g")
	var asked []uint64
	s.NakDelay = func(attempt uint64) time.Duration {
		asked = append(asked, attempt)
		return time.Duration(attempt) * 50 * time.Millisecond
	}
	messages := b.subscribe(s, b.topic("a"))
	var position string
	var nacked time.Time
	for want := uint64(1); want <= 4; want++ {
		msg := receive(t, messages)
		if got := attempt(t, msg); got != want {
			t.Fatalf("attempt %d, want %d", got, want)
		}
		if pause := time.Since(nacked); want > 1 && pause < time.Duration(want-1)*50*time.Millisecond {
			t.Errorf("attempt %d came after %v", want, pause)
		}
		info, _ := delivery.From(msg.Context())
		if want > 1 && info.Position != position {
			t.Errorf("position %q, earlier %q", info.Position, position)
		}
		position = info.Position
		if want < 4 {
			nacked = time.Now()
			msg.Nack()
		} else {
			msg.Ack()
		}
		<-msg.Context().Done()
	}
	must(t, s.Close())
	if fmt.Sprint(asked) != "[1 2 3]" {
		t.Errorf("NakDelay was asked for %v", asked)
	}
	if info := b.consumer(durable("g", b.topic("a"))); info.NumAckPending != 0 || info.AckFloor.Stream != 1 {
		t.Errorf("not acknowledged: %+v", info)
	}
}

// patientAckWait lets a machine that is busy with other tests be late with signs
// of life: they are due every second.
const patientAckWait = 3 * time.Second

// AckWait is how fast a crash is noticed, not how long a handler may take.
func TestASlowHandlersMessageIsNotDeliveredAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.publish(b.topic("a"), 1)
	said := b.said()
	s := b.subscriber("g")
	s.AckWait = patientAckWait
	messages := b.subscribe(s, b.topic("a"))
	msg := receive(t, messages)
	for range 7 { // more than two AckWaits
		await(t, said, "+WPI")
	}
	msg.Ack()
	await(t, said, "+ACK")
	must(t, s.Close())
	if info := b.consumer(durable("g", b.topic("a"))); info.Delivered.Consumer != 1 || info.NumAckPending != 0 {
		t.Errorf("delivered %d times, %d unacknowledged", info.Delivered.Consumer, info.NumAckPending)
	}
}

// The server's own BackOff counts instead of AckWait.
func TestHeartbeatsFollowTheConsumersBackOff(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.publish(b.topic("a"), 1)
	said := b.said()
	s := b.subscriber("g")
	s.Configure = func(cfg *natsjs.ConsumerConfig) { cfg.BackOff = []time.Duration{time.Minute, 600 * time.Millisecond} }
	msg := receive(t, b.subscribe(s, b.topic("a")))
	begun := time.Now()
	for range 3 {
		await(t, said, "+WPI")
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("three signs of life took %v", took)
	}
	msg.Ack()
}

func TestAMessageThatWaitsForAReaderIsKept(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.publish(b.topic("a"), 3)
	said := b.said()
	s := b.subscriber("g")
	s.AckWait = patientAckWait
	messages := b.subscribe(s, b.topic("a"))
	for range 21 { // of three messages: more than two AckWaits
		await(t, said, "+WPI")
	}
	for i := range 3 {
		msg := receive(t, messages)
		if string(msg.Payload) != fmt.Sprint(i) || attempt(t, msg) != 1 {
			t.Errorf("message %q, attempt %d", msg.Payload, attempt(t, msg))
		}
		msg.Ack()
	}
}

func TestABacklogWithSlowHandlersHasNoDuplicates(t *testing.T) {
	t.Parallel()
	const total = 300
	b := newBench(t, nil)
	b.publish(b.topic("a"), total)
	s := b.subscriber("g")
	s.MaxInFlight = total
	s.AckWait = patientAckWait
	messages := b.subscribe(s, b.topic("a"))
	handled := make(chan *message.Message, total)
	slots := make(chan struct{}, 1) // so that the last messages wait for more than two AckWaits
	for range total {
		msg := receive(t, messages)
		go func() {
			slots <- struct{}{}
			time.Sleep(25 * time.Millisecond) // the work
			<-slots
			msg.Ack()
			handled <- msg
		}()
	}
	seen := make(map[string]bool)
	for range total {
		msg := <-handled
		if seen[string(msg.Payload)] || attempt(t, msg) != 1 {
			t.Errorf("message %q is a duplicate, attempt %d", msg.Payload, attempt(t, msg))
		}
		seen[string(msg.Payload)] = true
	}
	must(t, s.Close())
	if info := b.consumer(durable("g", b.topic("a"))); info.Delivered.Consumer != total || info.NumAckPending != 0 || info.NumPending != 0 {
		t.Errorf("%d deliveries, %d unacknowledged, %d left", info.Delivered.Consumer, info.NumAckPending, info.NumPending)
	}
}

func TestNoMoreThanMaxInFlightAreHeld(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{1, 2, 10, 64} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			b := newBench(t, nil)
			b.publish(b.topic("a"), 300)
			s := b.subscriber("g")
			s.MaxInFlight = limit
			messages := b.subscribe(s, b.topic("a"))
			held := make(chan *message.Message, limit)
			for range 300 {
				if len(held) == limit {
					if n := b.consumer(durable("g", b.topic("a"))).NumAckPending; n > limit {
						t.Fatalf("%d messages are held", n)
					}
					(<-held).Ack()
				}
				held <- receive(t, messages)
			}
			for len(held) > 0 {
				(<-held).Ack()
			}
		})
	}
}

func TestOneInFlightIsStrictOrderOverTheGroup(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	const total = 30
	b.publish(b.topic("a"), total)
	members := make([]<-chan *message.Message, 3)
	for i := range members {
		s := b.subscriber("g")
		s.MaxInFlight = 1
		s.NakDelay = func(uint64) time.Duration { return 5 * time.Millisecond }
		members[i] = b.subscribe(s, b.topic("a"))
	}
	for want := 0; want < total; {
		var msg *message.Message
		select {
		case msg = <-members[0]:
		case msg = <-members[1]:
		case msg = <-members[2]:
		case <-time.After(patience):
			t.Fatal("no message arrives")
		}
		if string(msg.Payload) != fmt.Sprint(want) {
			t.Fatalf("message %q, want %d", msg.Payload, want)
		}
		if attempt(t, msg) == 1 && want%3 == 0 {
			msg.Nack()
			continue
		}
		msg.Ack()
		want++
	}
	if n := b.consumer(durable("g", b.topic("a"))).Config.MaxAckPending; n != 1 {
		t.Errorf("the server's MaxAckPending is %d", n)
	}
}

func TestAGroupDividesAndSubscribersWithoutOneEachGetAll(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	first := b.subscribe(b.subscriber("g"), b.topic("a"))
	second := b.subscribe(b.subscriber("g"), b.topic("a"))
	alone, everything := b.subscriber(""), b.subscriber("")
	fan := []<-chan *message.Message{b.subscribe(alone, b.topic("a")), b.subscribe(everything, b.topic("a"))}
	b.publish(b.topic("a"), 20)
	seen := make(map[string]int)
	for range 20 {
		var msg *message.Message
		select {
		case msg = <-first:
		case msg = <-second:
		case <-time.After(patience):
			t.Fatal("no message arrives")
		}
		seen[string(msg.Payload)]++
		msg.Ack()
	}
	if len(seen) != 20 {
		t.Errorf("the group got %v", seen)
	}
	for _, messages := range fan {
		for i := range 20 {
			msg := receive(t, messages)
			if string(msg.Payload) != fmt.Sprint(i) {
				t.Errorf("message %q, want %d", msg.Payload, i)
			}
			msg.Ack()
		}
	}
	must(t, alone.Close())
	must(t, everything.Close())
	names := b.consumers()
	if len(names) != 1 {
		t.Errorf("consumers left: %q", names)
	}
}

func TestMessagesArriveThroughARouter(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: patience}, watermill.NopLogger{})
	must(t, err)
	handled := make(chan string, 100)
	router.AddConsumerHandler("h", b.topic("a"), b.subscriber("g"), func(msg *message.Message) error {
		handled <- string(msg.Payload)
		return nil
	})
	ended := make(chan error)
	go func() { ended <- router.Run(context.Background()) }()
	b.publish(b.topic("a"), 100)
	for range 100 {
		select {
		case <-handled:
		case <-time.After(patience):
			t.Fatal("no message arrives")
		}
	}
	must(t, router.Close())
	must(t, <-ended)
	if info := b.consumer(durable("g", b.topic("a"))); info.NumAckPending != 0 || info.AckFloor.Consumer != 100 {
		t.Errorf("after Close: %d unacknowledged, floor %d", info.NumAckPending, info.AckFloor.Consumer)
	}
}
