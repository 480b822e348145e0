package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"
)

// patience is how long nothing may change until the run is given up.
const patience = 90 * time.Second

// progress is how far a run has come, from Postgres and the broker.
type progress struct {
	Orders    int // in the stream
	Bills     int // rows
	Shipments int // rows
	Waiting   int // in the outbox
	Idle      bool
}

// until looks at the progress again and again, and shows it, until it is enough.
func (r *run) until(ctx context.Context, enough func(progress) bool) error {
	changed := time.Now()
	for {
		p, err := r.look(ctx)
		if err != nil {
			return err
		}
		if p != r.progress {
			r.progress, changed = p, time.Now()
		}
		if time.Since(r.shown) > time.Second {
			r.shown = time.Now()
			fmt.Printf("   %d orders sent, %d bills, %d shipments, %d in the outbox\n", p.Orders, p.Bills, p.Shipments, p.Waiting)
		}
		if enough(p) {
			return nil
		}
		if time.Since(changed) > patience {
			return fmt.Errorf("nothing has changed for %v: %+v", patience, p)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond): // neither server tells: ask again
		}
	}
}

func (r *run) look(ctx context.Context) (p progress, err error) {
	outbox := `0`
	if r.with {
		outbox = `(SELECT count(*) FROM oncemill.outbox)`
	}
	row := r.db.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM bills), (SELECT count(*) FROM shipments), `+outbox)
	if err := row.Scan(&p.Bills, &p.Shipments, &p.Waiting); err != nil {
		return p, err
	}
	p.Idle = p.Waiting == 0
	for stream, consumer := range map[string]string{ordersStream: "billing~orders", "INVOICES": "shipping~invoices"} {
		idle, messages, err := r.lookAt(ctx, stream, consumer)
		if err != nil {
			return p, err
		}
		p.Idle = p.Idle && idle
		if stream == ordersStream {
			p.Orders = messages
		}
	}
	return p, nil
}

// lookAt reports whether everything in a stream is acknowledged, and how much is
// in it.
func (r *run) lookAt(ctx context.Context, stream, consumer string) (idle bool, messages int, err error) {
	s, err := r.js.Stream(ctx, stream)
	if err != nil {
		return false, 0, err
	}
	messages = int(s.CachedInfo().State.Msgs)
	c, err := s.Consumer(ctx, consumer)
	if err != nil { // the worker is not there yet
		return false, messages, nil
	}
	info := c.CachedInfo()
	return info.NumPending == 0 && info.NumAckPending == 0, messages, nil
}

// audit has the auditor, a process of its own, compute the result.
func (r *run) audit(ctx context.Context) error {
	var answer bytes.Buffer
	auditor, err := spawn(r.dir, "audit", r.setting, func(line string) { answer.WriteString(line) })
	if err != nil {
		return err
	}
	select {
	case <-auditor.ended:
	case <-ctx.Done():
		auditor.kill()
		return ctx.Err()
	}
	if err := errors.Join(auditor.err, json.Unmarshal(answer.Bytes(), &r.verdict)); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return os.Remove(auditor.log.Name())
}
