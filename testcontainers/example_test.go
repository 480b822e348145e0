package testcontainers_test

import (
	"context"
	"testing"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/testcontainers"
)

// A test of a handler, on a database of its own.
func Example() {
	_ = func(t *testing.T) { // TestBilling
		t.Parallel()
		database := testcontainers.Postgres(t)
		billing := (&oncemill.Inbox{DB: database.DB}).Consumer("billing")
		charges := 0
		for range 2 { // the second time is a redelivery
			err := billing.Once(t.Context(), "order-1", func(context.Context, oncemill.Tx) error {
				charges++
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if charges != 1 {
			t.Errorf("charged %d times", charges)
		}
	}
}
