package kafka_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/outbox"
)

// A relay may have two batches on their way, with the keys of one partition in both.
// Each gets its own answers, and the rows of a key stay in their order.
func TestTwoBatchesAtATime(t *testing.T) {
	t.Parallel()
	const batches, size = 10, 500
	b := newBench(t, 1)
	sink := b.sink(kgo.ProducerBatchCompression(kgo.NoCompression()))
	var both sync.WaitGroup
	for who := range 2 {
		both.Go(func() {
			for n := range batches {
				rows := rowsFor(b.topic, size)
				for i := range rows {
					rows[i].OrderingKey = fmt.Append(nil, who)
					rows[i].Payload = fmt.Append(nil, n*size+i)
				}
				if who == 0 {
					rows[size/2].Payload = make([]byte, 2<<20)
				}
				for i, err := range sink.PublishBatch(within(t), rows) {
					if bad := who == 0 && i == size/2; err != nil != bad || bad && !errors.Is(err, outbox.ErrRefused) {
						t.Errorf("batch %d of %d, row %d: %v", n, who, i, err)
					}
				}
			}
		})
	}
	both.Wait()
	last, got := map[string]int{"0": -1, "1": -1}, map[string]int{}
	for _, r := range recordsOf(b, batches*(2*size-1)) {
		key, n := string(r.Key), 0
		if _, err := fmt.Sscan(string(r.Value), &n); err != nil || n <= last[key] {
			t.Fatalf("key %s: %q came after %d", key, r.Value, last[key])
		}
		last[key] = n
		got[key]++
	}
	if got["0"] != batches*(size-1) || got["1"] != batches*size {
		t.Errorf("got %v", got)
	}
}
