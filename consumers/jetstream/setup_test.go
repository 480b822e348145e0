package jetstream_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
)

func TestWrongFieldsAreNamed(t *testing.T) {
	t.Parallel()
	nc := connect(t)
	for _, c := range []struct {
		name string
		s    *jetstream.Subscriber
	}{
		{"Conn", &jetstream.Subscriber{}},
		{"MaxInFlight", &jetstream.Subscriber{Conn: nc, MaxInFlight: -1}},
		{"AckWait", &jetstream.Subscriber{Conn: nc, AckWait: -time.Second}},
		{"DrainTimeout", &jetstream.Subscriber{Conn: nc, DrainTimeout: -1}},
		{"Group", &jetstream.Subscriber{Conn: nc, Group: "a.b"}},
		{"Group", &jetstream.Subscriber{Conn: nc, Group: "a b"}},
	} {
		_, err := c.s.Subscribe(ctx(t), "a")
		complains(t, err, "Subscriber."+c.name)
		complains(t, c.s.SubscribeInitialize("a"), "Subscriber."+c.name)
	}
}

func TestWrongTopicsAreNamed(t *testing.T) {
	t.Parallel()
	s := &jetstream.Subscriber{Conn: connect(t)}
	for topic, words := range map[string]string{
		"":                       "no topic",
		"a b":                    "space",
		"a..b":                   "empty part",
		".a":                     "empty part",
		"a.":                     "empty part",
		"a.>.b":                  "last part",
		"a\x00":                  "control character",
		"\xff":                   "UTF-8",
		"$JS.API.INFO":           "server's own",
		strings.Repeat("a", 5e3): "bytes",
	} {
		_, err := s.Subscribe(ctx(t), topic)
		complains(t, err, words)
	}
}

func TestAMissingStreamIsNamedWithTheRemedy(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	s := b.subscriber("g")
	_, err := s.Subscribe(ctx(t), "nobody.has.this")
	complains(t, err, `"nobody.has.this"`, "nats stream add", "CreateStream")
	complains(t, s.SubscribeInitialize("nobody.has.this"), `"nobody.has.this"`, "nats stream add")

	s = b.subscriber("g")
	s.Stream = "NOBODY"
	_, err = s.Subscribe(ctx(t), b.topic("a"))
	complains(t, err, `"NOBODY"`, "nats stream add")

	s = b.subscriber("g")
	s.Stream = b.stream
	_, err = s.Subscribe(ctx(t), "nobody.has.this")
	complains(t, err, b.stream, `"nobody.has.this"`, b.prefix+".>")
}

func TestAnAmbiguousPatternIsRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(cfg *natsjs.StreamConfig) { cfg.Subjects = []string{cfg.Subjects[0][:13] + ".one"} })
	_, err := b.js.CreateStream(ctx(t), natsjs.StreamConfig{Name: b.stream + "2", Subjects: []string{b.topic("two")}, Storage: natsjs.MemoryStorage})
	must(t, err)
	t.Cleanup(func() { b.js.DeleteStream(context.Background(), b.stream+"2") })

	s := b.subscriber("g")
	_, err = s.Subscribe(ctx(t), b.topic("*"))
	complains(t, err, b.stream, b.stream+"2", "Subscriber.Stream")
	s.Stream = b.stream
	b.publish(b.topic("one"), 1)
	receive(t, b.subscribe(s, b.topic("*"))).Ack()
}

func TestSubscribeCreatesTheStream(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	must(t, b.js.DeleteStream(ctx(t), b.stream))
	s := b.subscriber("g")
	s.CreateStream = func(topic string) natsjs.StreamConfig {
		return natsjs.StreamConfig{Name: b.stream, Subjects: []string{b.prefix + ".>"}, Storage: natsjs.MemoryStorage}
	}
	// Several members start at once, on a server without anything.
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := s.SubscribeInitialize(b.topic("a")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b.publish(b.topic("a"), 1)
	receive(t, b.subscribe(s, b.topic("a"))).Ack()
}

func TestAStreamThatDoesNotCaptureTheTopicIsRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	s := b.subscriber("g")
	s.CreateStream = func(string) natsjs.StreamConfig {
		return natsjs.StreamConfig{Name: b.stream + "3", Subjects: []string{b.prefix + "3.other"}, Storage: natsjs.MemoryStorage}
	}
	t.Cleanup(func() { b.js.DeleteStream(context.Background(), b.stream+"3") })
	_, err := s.Subscribe(ctx(t), b.prefix+"3.topic")
	complains(t, err, "no stream captures", b.prefix+"3.topic")
}

// Messages of before the subjects of a stream were changed, and those from other
// streams, are under subjects that it does not capture.
func TestAStreamMayHaveMessagesItDoesNotCapture(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.publish(b.topic("a"), 3)
	mirror := b.stream + "M"
	_, err := b.js.CreateStream(ctx(t), natsjs.StreamConfig{Name: mirror, Mirror: &natsjs.StreamSource{Name: b.stream}, Storage: natsjs.MemoryStorage})
	must(t, err)
	t.Cleanup(func() { b.js.DeleteStream(context.Background(), mirror) })
	_, err = b.js.UpdateStream(ctx(t), natsjs.StreamConfig{Name: b.stream, Subjects: []string{b.prefix + ".b"}, Storage: natsjs.MemoryStorage})
	must(t, err)
	for _, stream := range []string{b.stream, mirror} {
		s := b.subscriber("g")
		s.Stream = stream
		messages := b.subscribe(s, b.topic("a"))
		for range 3 {
			receive(t, messages).Ack()
		}
	}
}

func TestMaxDeliverIsRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	s := b.subscriber("g")
	s.Configure = func(cfg *natsjs.ConsumerConfig) { cfg.MaxDeliver = 3 }
	_, err := s.Subscribe(ctx(t), b.topic("a"))
	complains(t, err, "MaxDeliver 3", durable("g", b.topic("a")))
	if left := b.consumers(); len(left) > 0 {
		t.Errorf("it was created nevertheless: %q", left)
	}

	name := durable("h", b.topic("a"))
	_, err = b.js.CreateConsumer(ctx(t), b.stream, natsjs.ConsumerConfig{Durable: name, FilterSubject: b.topic("a"), AckPolicy: natsjs.AckExplicitPolicy, MaxDeliver: 5})
	must(t, err)
	_, err = b.subscriber("h").Subscribe(ctx(t), b.topic("a"))
	complains(t, err, "MaxDeliver 5", "nats consumer edit "+b.stream+" "+name+" --max-deliver=-1")

	s = b.subscriber("h")
	s.Configure = func(cfg *natsjs.ConsumerConfig) { cfg.MaxDeliver = -1 }
	b.subscribe(s, b.topic("a"))
	if n := b.consumer(name).Config.MaxDeliver; n != -1 {
		t.Errorf("MaxDeliver is %d", n)
	}
}

func TestAConsumerThatLosesMessagesIsRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	for i, c := range []struct {
		cfg  natsjs.ConsumerConfig
		word string
	}{
		{natsjs.ConsumerConfig{AckPolicy: natsjs.AckNonePolicy}, "AckPolicy"},
		{natsjs.ConsumerConfig{AckPolicy: natsjs.AckAllPolicy}, "AckPolicy"},
		{natsjs.ConsumerConfig{FilterSubject: b.topic("other")}, "not for"},
		{natsjs.ConsumerConfig{HeadersOnly: true}, "HeadersOnly"},
	} {
		group := fmt.Sprint("g", i)
		c.cfg.Durable = durable(group, b.topic("a"))
		if c.cfg.FilterSubject == "" {
			c.cfg.FilterSubject = b.topic("a")
		}
		_, err := b.js.CreateConsumer(ctx(t), b.stream, c.cfg)
		must(t, err)
		_, err = b.subscriber(group).Subscribe(ctx(t), b.topic("a"))
		complains(t, err, c.cfg.Durable, c.word)
	}
	_, err := b.js.CreatePushConsumer(ctx(t), b.stream, natsjs.ConsumerConfig{Durable: durable("push", b.topic("a")), DeliverSubject: "somewhere", AckPolicy: natsjs.AckExplicitPolicy})
	must(t, err)
	_, err = b.subscriber("push").Subscribe(ctx(t), b.topic("a"))
	complains(t, err, durable("push", b.topic("a")), "not a pull consumer")
}

// What somebody has set on the server stays, unless a field says otherwise.
func TestAnExistingConsumerKeepsItsConfiguration(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.publish(b.topic("a"), 10)
	name := durable("g", b.topic("a"))
	_, err := b.js.CreateConsumer(ctx(t), b.stream, natsjs.ConsumerConfig{
		Durable: name, FilterSubject: b.topic("a"), AckPolicy: natsjs.AckExplicitPolicy, MaxDeliver: -1,
		DeliverPolicy: natsjs.DeliverByStartSequencePolicy, OptStartSeq: 6, AckWait: 7 * time.Second,
		Description: "kept", MaxRequestBatch: 2, MaxRequestExpires: 2 * time.Second,
	})
	must(t, err)
	s := b.subscriber("g")
	messages := b.subscribe(s, b.topic("a"))
	for want := 5; want < 10; want++ {
		msg := receive(t, messages)
		if string(msg.Payload) != fmt.Sprint(want) {
			t.Errorf("message %q, want %d", msg.Payload, want)
		}
		msg.Ack()
	}
	cfg := b.consumer(name).Config
	if cfg.AckWait != 7*time.Second || cfg.Description != "kept" || cfg.MaxAckPending != 50_000 {
		t.Errorf("configuration %+v", cfg)
	}
	must(t, s.Close())
	s = b.subscriber("g")
	s.AckWait = 9 * time.Second
	s.MaxInFlight = 1
	b.subscribe(s, b.topic("a"))
	if cfg := b.consumer(name).Config; cfg.AckWait != 9*time.Second || cfg.MaxAckPending != 1 || cfg.Description != "kept" {
		t.Errorf("configuration %+v", cfg)
	}
	s = b.subscriber("g")
	s.MaxInFlight = 200
	s.Configure = func(cfg *natsjs.ConsumerConfig) { cfg.Metadata["owner"] = "billing" }
	b.subscribe(s, b.topic("a"))
	if cfg := b.consumer(name).Config; cfg.MaxAckPending != 50_000 || cfg.Metadata["owner"] != "billing" {
		t.Errorf("configuration %+v", cfg)
	}
	b.subscribe(b.subscriber("g"), b.topic("a"))
	if cfg := b.consumer(name).Config; cfg.MaxAckPending != 50_000 || cfg.Metadata["owner"] != "billing" {
		t.Errorf("configuration %+v", cfg)
	}
}

func TestAStreamsLimitsForConsumersAreRespected(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(cfg *natsjs.StreamConfig) {
		cfg.ConsumerLimits = natsjs.StreamConsumerLimits{MaxAckPending: 20, InactiveThreshold: time.Minute}
	})
	b.publish(b.topic("a"), 50)
	for _, group := range []string{"g", ""} {
		messages := b.subscribe(b.subscriber(group), b.topic("a"))
		for range 50 {
			receive(t, messages).Ack()
		}
	}
}

func TestNewConsumersNeverGiveUp(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.subscribe(b.subscriber("g"), b.topic("a"))
	cfg := b.consumer(durable("g", b.topic("a"))).Config
	if cfg.MaxDeliver != -1 || cfg.AckPolicy != natsjs.AckExplicitPolicy || cfg.DeliverPolicy != natsjs.DeliverAllPolicy ||
		cfg.AckWait != jetstream.DefaultAckWait || cfg.FilterSubject != b.topic("a") {
		t.Errorf("configuration %+v", cfg)
	}
}

// Two topics that differ only in what a consumer's name cannot have.
func TestEachTopicHasAConsumerOfItsOwn(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	topics := []string{"a.b", "a~b", "a=7Eb", "a.*", "a.>", "*.b", "ä", "a_b", "A_b", "a/b", `a\b`, "a-b"}
	s := b.subscriber("g")
	for _, topic := range topics {
		b.subscribe(s, b.topic(topic))
	}
	names := b.consumers()
	slices.Sort(names)
	if len(slices.Compact(names)) != len(topics) {
		t.Errorf("%d consumers for %d topics: %q", len(names), len(topics), names)
	}
}

func TestNoJetStreamIsSaid(t *testing.T) {
	t.Parallel()
	s := &jetstream.Subscriber{Conn: connect(t), APIPrefix: "$JS.nowhere.API"}
	_, err := s.Subscribe(ctx(t), "a")
	complains(t, err, "JetStream disabled")
}
