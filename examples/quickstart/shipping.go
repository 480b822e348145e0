package main

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
)

// ship is the consumer downstream: it writes a row for each invoice.
func ship(ctx context.Context, s setting) error {
	p, err := connect(s, losingNothing)
	if err != nil {
		return err
	}
	defer p.close()
	router, err := p.router(ctx)
	if err != nil {
		return err
	}
	router.AddConsumerHandler("shipping", "invoices", p.subscriber("shipping"), func(msg *message.Message) error {
		db, err := p.effects(msg.Context())
		if err == nil {
			_, err = db.ExecContext(msg.Context(), `INSERT INTO shipments (order_number) VALUES ($1)`, order(msg))
		}
		return err
	})
	return router.Run(ctx)
}

type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// effects is where a handler writes: with Oncemill the message's transaction.
func (p *parts) effects(ctx context.Context) (execer, error) {
	if !p.setting.Oncemill {
		return p.db, nil
	}
	tx, ok := oncemill.TxFromContext(ctx)
	if !ok {
		return nil, fmt.Errorf("no transaction in the message's context")
	}
	return tx, nil
}
