// Package delivery carries what a subscriber knows of one delivery through the
// message's context, so that middleware can use it without importing a broker
// client.
package delivery

import (
	"context"
	"time"
)

// Info is what a subscriber knows of one delivery of a message.
type Info struct {
	// Position names the message's place in the broker, the same on every
	// delivery and never that of another message. It holds the identity of the
	// stream or topic, not only its name, so that a recreated one does not
	// repeat positions.
	Position string

	// Time is when the broker stored the message.
	Time time.Time

	// Attempt counts the deliveries of this message, from 1. 0: unknown.
	Attempt uint64

	// Hold asks the subscriber to fetch nothing more until probe returns nil.
	// The subscriber calls probe again and again, with a pause between the
	// calls, until then. Hold returns at once; while a hold is on, further
	// calls do nothing. nil: the subscriber cannot pause.
	Hold func(probe func(context.Context) error)
}

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
