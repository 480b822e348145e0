package delivery

import (
	"context"
	"time"
)

type keptKey struct{}

// WithKept tells a subscriber, by the context of a Subscribe, for how long the claims of
// what it delivers are kept.
func WithKept(ctx context.Context, kept time.Duration) context.Context {
	return context.WithValue(ctx, keptKey{}, kept)
}

// Kept returns what WithKept has put into ctx, 0 if nothing.
func Kept(ctx context.Context) time.Duration {
	kept, _ := ctx.Value(keptKey{}).(time.Duration)
	return kept
}
