package main

import (
	"context"
	"fmt"

	"github.com/oncemill/oncemill/examples/internal/screen"
)

// progress is how far a run is. It is only for the screen, and to know when all orders
// are through; the report has the checker's figures.
type progress struct {
	settled int
	failed  int
	parked  int // in doubt, and known to be
	open    int // in flight, or in doubt and to be asked about
	done    bool
}

func (p progress) String() string {
	text := fmt.Sprintf("%s settled", screen.Thousands(p.settled))
	if p.failed > 0 {
		text += fmt.Sprintf(", %d failed", p.failed)
	}
	if p.parked > 0 {
		text += fmt.Sprintf(", %d in doubt", p.parked)
	}
	if p.open > 0 {
		text += fmt.Sprintf(", %d open", p.open)
	}
	return text
}

const readProgress = `
SELECT count(*) FILTER (WHERE outcome = 'settled'), count(*) FILTER (WHERE outcome = 'failed'),
	count(*) FILTER (WHERE in_doubt_since IS NOT NULL AND p.key IS NOT NULL),
	count(*) FILTER (WHERE settled_at IS NULL AND (in_doubt_since IS NULL OR p.key IS NULL))
FROM oncemill.claims c LEFT JOIN oncemill.parked p USING (consumer, key)
WHERE c.consumer = $1`

// look finds out whether every order is through: its claim in a state that is final,
// which nothing leaves again. Then nothing is added to the outbox any more; when that is
// empty, all that there will ever be is in the streams.
func (r *run) look(ctx context.Context) (p progress, err error) {
	kind := r.setting.kind()
	row := r.db.QueryRowContext(ctx, readProgress, kind.consumer)
	if err := row.Scan(&p.settled, &p.failed, &p.parked, &p.open); err != nil {
		return p, err
	}
	final := p.settled + p.failed
	if !kind.asks { // or the resolver goes on
		final += p.parked
	}
	if final < r.setting.Messages {
		return p, nil
	}
	var unsent int
	if err := r.db.QueryRowContext(ctx, `SELECT count(*) FROM oncemill.outbox`).Scan(&unsent); err != nil {
		return p, err
	}
	flow, err := r.broker.Look(ctx, orders, kind.consumer)
	p.done = unsent == 0 && flow.Messages >= messages(r.setting.Messages) && flow.Waiting == 0
	return p, err
}
