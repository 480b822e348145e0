// Package delivery carries what a subscriber knows of one delivery through the
// message's context, so that middleware can use it without importing a broker
// client. It also has what the subscribers share in dealing with failures.
package delivery

import (
	"context"
	"sync/atomic"
	"time"
)

// Info is what a subscriber knows of one delivery of a message.
type Info struct {
	// Position names the message's place in the broker, the same on every
	// delivery and never that of another message. It holds the identity of the
	// stream or topic, not only its name, so that a recreated one does not
	// repeat positions.
	Position string

	// Topic is the one to which the message was published, where the subscriber may have
	// subscribed to a pattern. "": the one that was subscribed to.
	Topic string

	// Place says the same for people, by parts such as "partition" and "offset".
	// It is noted on dead letters, and asked for only then. nil: there is nothing
	// to add to Position.
	Place func() map[string]string

	// Turn is the message's turn among those that must take effect in order.
	// nil: they need not.
	Turn *Turn

	// Time is when the broker stored the message.
	Time time.Time

	// Attempt counts the deliveries of this message, from 1. 0: unknown.
	Attempt uint64

	// Delay takes a wish about the delay after a nack. nil: the subscriber has its own
	// ideas.
	Delay *Delay

	// Hold asks the subscriber to fetch nothing more until probe returns nil.
	// The subscriber calls probe again and again, with a pause between the
	// calls, until then. Hold returns at once; while a hold is on, further
	// calls do nothing. nil: the subscriber cannot pause.
	Hold func(probe func(context.Context) error)
}

// A Turn is a message's place in a line of messages that must take effect one
// after another. A message that is delivered again keeps its turn.
type Turn struct {
	// Line is the same for all messages of a line, and of no other line in the
	// process, also not of one that has been there before: what has been lost to
	// another process and come back is a new line.
	Line uint64

	// Number counts the line's messages, from 1, without gaps.
	Number uint64

	// Before is closed once all messages before this one in the line were
	// acknowledged. If they will not be, since the line is lost, this message's
	// context ends. nil for the first of a line, and where they already were.
	Before <-chan struct{}

	// Kept is called by whoever lets the message take effect in its turn only, before
	// it waits for that. A subscriber may hand out further messages of the line, before
	// this one is acknowledged, only where it is called. It may be called again, and
	// from any goroutine. nil: the subscriber does not ask.
	Kept func()
}

var lines atomic.Uint64

// NewLine returns the number of a new line.
func NewLine() uint64 { return lines.Add(1) }

type contextKey struct{}

// With returns ctx with info in it.
func With(ctx context.Context, info Info) context.Context {
	return context.WithValue(ctx, contextKey{}, info)
}

// From returns the Info that With put into ctx.
func From(ctx context.Context) (Info, bool) {
	info, ok := ctx.Value(contextKey{}).(Info)
	return info, ok
}
