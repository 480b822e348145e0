package middleware_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
)

// BenchmarkOnce handles messages whose handler writes a row and publishes a message of 200
// bytes: each in a transaction of its own, and in batches. 256 are in flight.
func BenchmarkOnce(b *testing.B) {
	for _, batch := range []int{0, 128} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			db := testenv.DB(b)
			db.SetMaxOpenConns(16)
			db.SetMaxIdleConns(16)
			if _, err := db.Exec(`CREATE TABLE effects (name text)`); err != nil {
				b.Fatal(err)
			}
			benchmarkOnce(b, &oncemill.Inbox{DB: db, Batch: batch})
		})
	}
}

func benchmarkOnce(b *testing.B, inbox *oncemill.Inbox) {
	publisher, payload := &outbox.Publisher{}, make([]byte, 200)
	h := middleware.Once{Inbox: inbox, Consumer: "bench"}.Middleware(func(msg *message.Message) ([]*message.Message, error) {
		tx, _ := oncemill.TxFromContext(msg.Context())
		if _, err := tx.ExecContext(msg.Context(), `INSERT INTO effects (name) VALUES ($1)`, msg.UUID); err != nil {
			return nil, err
		}
		return nil, publisher.Publish("topic", message.NewMessageWithContext(msg.Context(), msg.UUID, payload))
	})
	uuids := make(chan string)
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for range 256 {
		wg.Go(func() {
			for uuid := range uuids {
				if _, err := h(message.NewMessageWithContext(context.Background(), uuid, payload)); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for i := range b.N {
		uuids <- fmt.Sprintf("%020d", i)
	}
	close(uuids)
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}
