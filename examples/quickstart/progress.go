package main

import (
	"context"
	"fmt"

	"github.com/oncemill/oncemill/examples/internal/screen"
)

// progress is how far a run is. It is only for the screen, and to know when all
// orders are through; the report has the auditor's figures.
type progress struct {
	orders    int // sent
	bills     int // rows
	shipments int // rows
	done      bool
}

func (p progress) String() string {
	return fmt.Sprintf("%s orders sent, %s bills, %s shipments", screen.Thousands(p.orders), screen.Thousands(p.bills), screen.Thousands(p.shipments))
}

// look follows the orders' way, so that nothing can move on behind its back.
func (r *run) look(ctx context.Context) (p progress, err error) {
	billing, err := r.broker.look(ctx, orders, "billing")
	if err != nil {
		return p, err
	}
	inOutbox := `0`
	if r.setting.Oncemill {
		inOutbox = `(SELECT count(*) FROM oncemill.outbox)`
	}
	var unsent int
	row := r.db.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM bills), (SELECT count(*) FROM shipments), `+inOutbox)
	if err := row.Scan(&p.bills, &p.shipments, &unsent); err != nil {
		return p, err
	}
	shipping, err := r.broker.look(ctx, invoices, "shipping")
	if err != nil {
		return p, err
	}
	p.orders = billing.Messages
	p.done = p.orders == r.setting.Messages && billing.Waiting+unsent+shipping.Waiting == 0
	return p, nil
}
