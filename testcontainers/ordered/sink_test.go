package ordered_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers/internal/lot"
)

// A sink publishes to JetStream, and has messages fail and the process suffer.
type sink struct {
	p     *performer
	inner *jetstream.Sink
	calls atomic.Int64
}

func newSink(p *performer, nc *nats.Conn) *sink {
	return &sink{p: p, inner: &jetstream.Sink{Conn: nc}}
}

var (
	errFails = errors.New("the test has it fail")
	errLost  = errors.New("the test has lost its ack")
	errAway  = fmt.Errorf("the test takes the broker away: %w", outbox.ErrUnavailable)
)

// PublishBatch makes sink an outbox.Sink.
func (s *sink) PublishBatch(ctx context.Context, rows []outbox.Row) []error {
	draw := lot.Of(s.p.Seed, "batch", s.p.Name, s.calls.Add(1))
	if s.p.Steady {
		draw = nil
	}
	s.p.Say("batch %d", len(rows))
	s.p.suffer(dieBeforePublishing, rows)
	if s.p.suffer(freezeBeforePublishing, rows) {
		return s.stale(ctx, rows)
	}
	if oneIn(draw, 50) {
		s.p.Say("away")
		return same(errAway, len(rows))
	}
	errs := s.publish(ctx, rows, draw)
	if oneIn(draw, 25) { // a slow broker
		wait(ctx, time.Duration(draw.Int64N(int64(150*time.Millisecond))))
	}
	s.p.suffer(dieAfterPublishing, rows)
	return errs
}

// publish publishes rows, half of them after the other half if the broker is unsteady: it may go
// away in between, or with the acknowledgements of the second half.
func (s *sink) publish(ctx context.Context, rows []outbox.Row, draw *rand.Rand) []error {
	if draw == nil {
		return s.each(ctx, rows)
	}
	half := len(rows) / 2
	errs := s.each(ctx, rows[:half])
	if s.p.suffer(freezeWithinAPublish, rows[half:]) {
		return append(errs, s.stale(ctx, rows[half:])...)
	}
	if oneIn(draw, 50) {
		s.p.Say("away")
		return append(errs, same(errAway, len(rows)-half)...)
	}
	rest := s.each(ctx, rows[half:])
	if oneIn(draw, 50) {
		s.p.Say("away")
		for i, err := range rest {
			if err == nil {
				rest[i] = fmt.Errorf("%w after it was published", errAway)
			}
		}
	}
	return append(errs, rest...)
}

// each publishes rows, and has each its fate.
func (s *sink) each(ctx context.Context, rows []outbox.Row) []error {
	errs := make([]error, len(rows))
	fates := make([]fate, len(rows))
	var sound []outbox.Row
	for i, row := range rows {
		fates[i] = succeeds
		if !s.p.Calm {
			fates[i] = fateOf(s.p.Seed, row)
		}
		if s.p.Bare {
			row = bare(row)
			if fates[i] == isLost {
				fates[i] = fails
			}
		}
		switch fates[i] {
		case fails:
			errs[i] = errFails
		case refused:
			errs[i] = fmt.Errorf("the test has it refused: %w", outbox.ErrRefused)
		default:
			sound = append(sound, row)
		}
		s.p.tell(row.UUID, "%s (%s, attempt %d, id %d)", fates[i], row.OrderingKey, row.Attempts, row.ID)
	}
	if len(sound) == 0 {
		return errs
	}
	answers := s.inner.PublishBatch(ctx, sound)
	if errors.Is(errors.Join(answers...), outbox.ErrUnavailable) {
		s.p.Say("missing")
	}
	for i := range rows {
		if errs[i] != nil {
			continue
		}
		if errs[i], answers = answers[0], answers[1:]; errs[i] != nil {
			s.p.tell(rows[i].UUID, "is not known to be published: %q", errs[i].Error())
		} else if fates[i] == isLost {
			errs[i] = errLost
		}
	}
	return errs
}

// idHeader has the dedup id of a message that goes without one, as far as the broker knows.
const idHeader = "id"

// bare has a row published as often as the relay wants it to be.
func bare(row outbox.Row) outbox.Row {
	row.Metadata = maps.Clone(row.Metadata)
	row.Metadata[idHeader] = row.DedupID
	row.DedupID = ""
	return row
}

// stale publishes what this process had in its hands when it froze. Its deadline is
// over; but it might have frozen right after it had looked.
func (s *sink) stale(ctx context.Context, rows []outbox.Row) []error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	for {
		errs := s.each(ctx, rows)
		if !errors.Is(errors.Join(errs...), outbox.ErrUnavailable) || ctx.Err() != nil {
			s.p.Say("stale %d", len(rows))
			return errs
		}
		wait(ctx, 20*time.Millisecond) // until the connection is back
	}
}

// suffer is called where something could happen to the process, and makes it happen if
// it is its Fault. It reports whether the process was frozen.
func (p *performer) suffer(f fault, rows []outbox.Row) (thawed bool) {
	if p.Fault != f || len(rows) == 0 {
		return false
	}
	return p.Suffer(f == freezeBeforePublishing || f == freezeWithinAPublish, p.After, rows[0].UUID)
}

// oneIn draws whether something happens that does so one in n times.
func oneIn(draw *rand.Rand, n int) bool { return draw != nil && draw.IntN(n) == 0 }

func same(err error, n int) []error {
	errs := make([]error, n)
	for i := range errs {
		errs[i] = err
	}
	return errs
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
