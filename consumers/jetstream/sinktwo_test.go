package jetstream_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/outbox"
)

// A relay may have two batches on their way. Each gets its own answers, and a row
// of one that is refused does not touch the other.
func TestTwoBatchesAtATime(t *testing.T) {
	t.Parallel()
	const batches, size = 3, 3000 // together more than a stream queues, were they not held back
	b := newBench(t, func(cfg *natsjs.StreamConfig) { cfg.MaxMsgSize = 300_000 })
	sink := &jetstream.Sink{Conn: b.nc}
	var both sync.WaitGroup
	for who := range 2 {
		both.Go(func() {
			for n := range batches {
				batch := rows(size, b.topic(fmt.Sprint(who)))
				for i := range batch {
					batch[i].DedupID = fmt.Sprintf("%d-%d-%d", who, n, i)
					batch[i].Payload = fmt.Append(nil, n*size+i)
				}
				if who == 0 {
					batch[size/2].Payload = make([]byte, 400_000)
				}
				for i, err := range sink.PublishBatch(ctx(t), batch) {
					if bad := who == 0 && i == size/2; err != nil != bad || bad && !errors.Is(err, outbox.ErrRefused) {
						t.Errorf("batch %d of %d, row %d: %v", n, who, i, err)
					}
				}
			}
		})
	}
	both.Wait()
	for who, want := range []int{batches * (size - 1), batches * size} {
		messages := b.subscribe(b.subscriber("g"), b.topic(fmt.Sprint(who)))
		last := -1
		for range want {
			msg := receive(t, messages)
			n := 0
			if _, err := fmt.Sscan(string(msg.Payload), &n); err != nil || n <= last {
				t.Fatalf("%q came after %d", msg.Payload, last)
			}
			last = n
			msg.Ack()
		}
	}
}
