package oncetest

import (
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"
)

// A Broker is a message.Publisher for handlers that publish to the broker themselves, to
// show why they should not: what it has got cannot be taken back. Give it to the handler in
// place of its publisher, and its Count to Case.Outside. The zero value is ready.
type Broker struct {
	mu   sync.Mutex
	sent []Sent
}

var _ message.Publisher = (*Broker)(nil)

// Publish takes messages.
func (b *Broker) Publish(topic string, msgs ...*message.Message) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, msg := range msgs {
		b.sent = append(b.sent, Sent{Topic: topic, Message: msg.Copy()})
	}
	return nil
}

// Close does nothing.
func (b *Broker) Close() error { return nil }

// Count returns how many messages it has got.
func (b *Broker) Count() int { return len(b.Sent()) }

// Sent returns what it has got, in its order.
func (b *Broker) Sent() []Sent {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]Sent(nil), b.sent...)
}

// Sent is a message that was published, and where to.
type Sent struct {
	Topic   string
	Message *message.Message
}
