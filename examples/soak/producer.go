package main

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/examples/internal/streams"
)

const (
	publishers = 64
	window     = 4000 // messages on their way, while the capacity is measured
	dueEvery   = 10 * time.Millisecond
)

// produce sends messages, numbered from First on, each until the broker has it. When ctx
// ends it says the number after the last.
func produce(ctx context.Context, s setting) error {
	b, err := streams.Connect(s.NATS)
	if err != nil {
		return err
	}
	defer b.Close()
	publisher := &jetstream.Publisher{Conn: b.Conn, MsgID: jetstream.TopicUUID}
	numbers := make(chan int64)
	var publishing sync.WaitGroup
	for range publishers {
		publishing.Go(func() {
			for n := range numbers {
				publish(publisher, n)
			}
		})
	}
	due := s.due()
	if s.Rate == 0 {
		due = dueByWindow(ctx, b)
	}
	next := s.First
	for tick := time.NewTicker(dueEvery); ctx.Err() == nil; {
		for end := due(); next < end; next++ {
			numbers <- next
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	close(numbers)
	publishing.Wait() // what was begun is finished
	crew.Say(strconv.FormatInt(next, 10))
	return nil
}

// due tells up to which number messages are due: Rate a second.
func (s setting) due() func() int64 {
	begun := time.Now()
	return func() int64 { return s.First + int64(time.Since(begun).Seconds()*s.Rate) }
}

// dueByWindow tells the same where as many are sent as the others take.
func dueByWindow(ctx context.Context, b *streams.Broker) func() int64 {
	var last int64
	return func() int64 {
		if n, err := arrived(ctx, b); err == nil { // or the next look tells
			last = n + window
		}
		return last
	}
}

// topicOf is where a message goes.
func topicOf(number int64) string {
	if number%chargesEvery == 0 {
		return charges
	}
	return orders
}

// publish sends a message, whose payload is when that was.
func publish(publisher message.Publisher, number int64) {
	topic := topicOf(number)
	payload := strconv.FormatInt(time.Now().UnixNano(), 10)
	for {
		err := publisher.Publish(topic, message.NewMessage(strconv.FormatInt(number, 10), []byte(payload)))
		if err == nil {
			return
		}
		slog.Warn("not published, and sent again", "number", number, "error", err)
		time.Sleep(100 * time.Millisecond)
	}
}

// numberOf is that of a message or its child.
func numberOf(msg *message.Message) (int64, error) {
	n, err := strconv.ParseInt(msg.UUID, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("the UUID is no number: %w", err)
	}
	return n, nil
}
