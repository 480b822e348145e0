package jetstream_test

import (
	"fmt"
	"testing"

	"github.com/oncemill/oncemill/consumers/jetstream"
)

// One message is delivered and acknowledged, with the server's confirmation.
func BenchmarkSubscriber(b *testing.B) {
	for _, inFlight := range []int{1, 64, 256} {
		b.Run(fmt.Sprint(inFlight), func(b *testing.B) {
			bench := newBench(b, nil)
			bench.publish(bench.topic("a"), b.N)
			s := bench.subscriber("g")
			s.MaxInFlight = inFlight
			b.ResetTimer()
			messages := bench.subscribe(s, bench.topic("a"))
			for range b.N {
				receive(b, messages).Ack()
			}
		})
	}
}

func BenchmarkSink(b *testing.B) {
	bench := newBench(b, nil)
	sink := &jetstream.Sink{Conn: bench.nc}
	batch := rows(b.N, bench.topic("a"))
	b.ResetTimer()
	for len(batch) > 0 {
		n := min(1000, len(batch))
		for _, err := range sink.PublishBatch(ctx(b), batch[:n]) {
			must(b, err)
		}
		batch = batch[n:]
	}
}
