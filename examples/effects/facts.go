package main

import (
	"context"
	"database/sql"
	"fmt"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/examples/internal/streams"
)

// facts are what there is of each order, by its key, wherever it is.
type facts struct {
	orders      map[string]int64            // their amounts, from the topic
	messages    int                         // in it
	effects     map[string][]effect         // from the provider's ledger
	claims      map[string]oncemill.Outcome // "" is one that is not settled
	doubts      map[string]oncemill.InDoubt // as Inbox.InDoubt lists them
	settlements map[string]int              // events of claims that were settled
	records     map[string][]record         // the demo's table
	receipts    map[string]int              // in their topic
	attempts    int                         // at effects, by the events
	resolved    int                         // claims that were settled by a resolver
}

// record is a row of the demo's table.
type record struct {
	receipt string
	amount  int64
}

func readFacts(ctx context.Context, s setting) (*facts, error) {
	f := &facts{
		orders: map[string]int64{}, effects: map[string][]effect{}, claims: map[string]oncemill.Outcome{},
		doubts: map[string]oncemill.InDoubt{}, settlements: map[string]int{}, records: map[string][]record{}, receipts: map[string]int{},
	}
	effects, err := s.kind().ledger(s.Dir)
	if err != nil {
		return nil, fmt.Errorf("read the provider's ledger: %w", err)
	}
	for _, e := range effects {
		f.effects[e.Order] = append(f.effects[e.Order], e)
	}
	if err := f.readTopics(ctx, s); err != nil {
		return nil, fmt.Errorf("read the topics: %w", err)
	}
	db, err := crew.OpenDB(s.Postgres)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	if err := f.readPostgres(ctx, db, s.kind().consumer); err != nil {
		return nil, fmt.Errorf("read Postgres: %w", err)
	}
	return f, nil
}

func (f *facts) readTopics(ctx context.Context, s setting) error {
	broker, err := streams.Connect(s.NATS)
	if err != nil {
		return err
	}
	defer broker.Close()
	sent, err := readAll(ctx, broker, orders)
	if err != nil {
		return err
	}
	f.messages = len(sent)
	for _, msg := range sent {
		f.orders[msg.Headers().Get(orderID)] = amountIn(msg.Data())
	}
	answers, err := readAll(ctx, broker, receipts)
	for _, msg := range answers {
		f.receipts[msg.Headers().Get(orderID)]++
	}
	return err
}

func readAll(ctx context.Context, broker *streams.Broker, topic string) ([]natsjs.Msg, error) {
	flow, err := broker.Look(ctx, topic, "none")
	if err != nil {
		return nil, err
	}
	return broker.Read(ctx, topic, flow.Messages)
}

func (f *facts) readPostgres(ctx context.Context, db *sql.DB, consumer string) error {
	for _, read := range []func(context.Context, *sql.DB, string) error{f.readClaims, f.readDoubts, f.readEvents, f.readRecords} {
		if err := read(ctx, db, consumer); err != nil {
			return err
		}
	}
	return nil
}

func (f *facts) readClaims(ctx context.Context, db *sql.DB, consumer string) error {
	const query = `SELECT key, COALESCE(outcome, '') FROM oncemill.claims WHERE consumer = $1`
	return crew.Each(ctx, db, query, []any{consumer}, func(scan func(...any) error) error {
		var key string
		var outcome oncemill.Outcome
		err := scan(&key, &outcome)
		f.claims[key] = outcome
		return err
	})
}

func (f *facts) readDoubts(ctx context.Context, db *sql.DB, consumer string) error {
	const page = 200
	inbox := &oncemill.Inbox{DB: db}
	var after oncemill.InDoubt
	for {
		listed, err := inbox.InDoubt(ctx, consumer, after, page)
		if err != nil {
			return err
		}
		for _, d := range listed {
			f.doubts[d.Key] = d
		}
		if len(listed) < page {
			return nil
		}
		after = listed[len(listed)-1]
	}
}

func (f *facts) readEvents(ctx context.Context, db *sql.DB, consumer string) error {
	const query = `
SELECT key, count(*) FILTER (WHERE kind = 'settled'), count(*) FILTER (WHERE kind IN ('claimed', 'taken over')),
	count(*) FILTER (WHERE kind = 'settled' AND note LIKE 'resolved%')
FROM oncemill.events WHERE consumer = $1 GROUP BY key`
	return crew.Each(ctx, db, query, []any{consumer}, func(scan func(...any) error) error {
		var key string
		var settled, attempts, resolved int
		err := scan(&key, &settled, &attempts, &resolved)
		f.settlements[key] = settled
		f.attempts += attempts
		f.resolved += resolved
		return err
	})
}

func (f *facts) readRecords(ctx context.Context, db *sql.DB, _ string) error {
	return crew.Each(ctx, db, `SELECT order_id, receipt, amount FROM records`, nil, func(scan func(...any) error) error {
		var order string
		var r record
		err := scan(&order, &r.receipt, &r.amount)
		f.records[order] = append(f.records[order], r)
		return err
	})
}
