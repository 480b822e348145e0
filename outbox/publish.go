package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// publish hands a batch's rows to the Sink and judges its answers. The rows are
// not needed any more then. It returns how long the Sink took for a call: with ordering
// keys there are as many as a key has rows, which says nothing of how many it can take.
func (l *loop) publish(b *batch) (took time.Duration) {
	ctx, cancel := context.WithDeadline(l.publishing, b.due)
	defer cancel()
	if l.source.inOrder() {
		b.verdicts = l.publishInOrder(ctx, b.fetched)
	} else {
		b.verdicts = newVerdicts(b.fetched)
		l.ask(ctx, b.verdicts, b.rows)
	}
	b.rows = nil
	slices.Sort(b.verdicts.published)
	return b.verdicts.slowest
}

// ask adds to the verdicts what becomes of the rows, and tells which are published.
func (l *loop) ask(ctx context.Context, v *verdicts, rows []Row) (passed []bool) {
	passed = make([]bool, len(rows))
	if len(rows) == 0 {
		return passed
	}
	begun := time.Now()
	answers, err := publishTo(ctx, l.to.sink, rows)
	v.slowest = max(v.slowest, time.Since(begun))
	if err != nil {
		for _, row := range rows {
			v.leave(row)
		}
		v.unavailable = err
		return passed
	}
	some := false
	for i, err := range answers {
		if passed[i] = err == nil; passed[i] {
			v.published = append(v.published, rows[i].ID)
			v.took[rows[i].Topic] = true
			some = true
		}
	}
	for i, err := range answers {
		if err != nil {
			l.judge(v, rows[i], err, some)
		}
	}
	return passed
}

// judge decides what becomes of a row that was not published. The deadline may
// pass because one row takes for ever or because the broker is away; if none of
// those that went with it was published it is taken to be the broker. A row that
// was cut off by the end of Run is not to blame either.
func (l *loop) judge(v *verdicts, row Row, err error, others bool) {
	late := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
	blameless := late && (!others || l.publishing.Err() != nil)
	refused := errors.Is(err, ErrRefused)
	switch {
	case !refused && (errors.Is(err, ErrUnavailable) || blameless):
		v.leave(row)
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

// leave has a row stay as it is.
func (v *verdicts) leave(row Row) {
	v.untouched = append(v.untouched, Row{ID: row.ID, Topic: row.Topic, OrderingKey: row.OrderingKey})
}

func asUnavailable(err error) error {
	if errors.Is(err, ErrUnavailable) {
		return fmt.Errorf("broker: %w", err)
	}
	return fmt.Errorf("broker: %w: %w", ErrUnavailable, err)
}
