package main

import (
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/oncetest"
	"github.com/oncemill/oncemill/testcontainers"
)

// A unit test of the handler, and whether it is safe whatever goes wrong.
func TestBill(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers: make test")
	}
	db := testcontainers.Postgres(t).DB
	if _, err := db.Exec(`CREATE TABLE payments (order_id text)`); err != nil {
		t.Fatal(err)
	}
	order := message.NewMessage("order-7", []byte("7"))

	done := oncetest.Handle(t, db, bill, order)
	var payments int
	if err := done.Tx.QueryRow(`SELECT count(*) FROM payments WHERE order_id = '7'`).Scan(&payments); err != nil {
		t.Fatal(err)
	}
	if done.Err != nil || payments != 1 || len(done.Returned) != 1 {
		t.Errorf("%d payments, %d invoices, error %v", payments, len(done.Returned), done.Err)
	}

	oncetest.Check(t, oncetest.Case{DB: db, Handler: bill, Message: order})
}
