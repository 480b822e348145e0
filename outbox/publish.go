package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// publish hands a batch's rows to the Sink and judges its answers. The rows are
// not needed any more then.
func (l *loop) publish(b *batch) (took time.Duration) {
	ctx, cancel := context.WithDeadline(l.publishing, b.due)
	defer cancel()
	begun := time.Now()
	b.verdicts = l.ask(ctx, b.fetched)
	b.rows = nil
	return time.Since(begun)
}

// ask returns what becomes of the rows.
func (l *loop) ask(ctx context.Context, f *fetched) *verdicts {
	v := &verdicts{failed: f.broken}
	if len(f.rows) == 0 {
		return v
	}
	answers := l.Sink.PublishBatch(ctx, f.rows)
	if len(answers) != len(f.rows) {
		v.untouched = len(f.rows)
		v.unavailable = fmt.Errorf("%w: Sink %T returned %d errors for %d rows, want one for each", ErrUnavailable, l.Sink, len(answers), len(f.rows))
		return v
	}
	for i, err := range answers {
		if err == nil {
			v.published = append(v.published, f.rows[i].ID)
		}
	}
	for i, err := range answers {
		if err != nil {
			l.judge(v, f.rows[i], err)
		}
	}
	return v
}

// judge decides what becomes of a row that was not published. The deadline may
// pass because one row takes for ever or because the broker is away; if nothing
// at all was published it is taken to be the broker. A row that was cut off by
// the end of Run is not to blame either.
func (l *loop) judge(v *verdicts, row Row, err error) {
	late := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
	blameless := late && (len(v.published) == 0 || l.publishing.Err() != nil)
	refused := errors.Is(err, ErrRefused)
	switch {
	case !refused && (errors.Is(err, ErrUnavailable) || blameless):
		v.untouched++
		if v.unavailable == nil {
			v.unavailable = asUnavailable(err)
		}
	case refused, l.MaxAttempts > 0 && row.Attempts+1 >= l.MaxAttempts:
		v.failed = append(v.failed, failure{row: row, err: err, park: true})
	default:
		pause := backoff(l.minBackoff(), l.maxBackoff(), row.Attempts)
		v.failed = append(v.failed, failure{row: row, err: err, pause: pause})
	}
}

func asUnavailable(err error) error {
	if errors.Is(err, ErrUnavailable) {
		return fmt.Errorf("broker: %w", err)
	}
	return fmt.Errorf("broker: %w: %w", ErrUnavailable, err)
}
