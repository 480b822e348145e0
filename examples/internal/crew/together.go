package crew

import "context"

// Together runs functions side by side until ctx ends or the first of them does, and
// returns the first error once all have ended.
func Together(ctx context.Context, functions ...func(context.Context) error) (first error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, len(functions))
	for _, run := range functions {
		go func() { ended <- run(ctx) }()
	}
	for range functions {
		if err := <-ended; err != nil && first == nil {
			first = err
		}
		cancel()
	}
	return first
}
