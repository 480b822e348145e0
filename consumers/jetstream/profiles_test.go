package jetstream_test

import (
	"fmt"
	"testing"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

// What a stream that is not replicated can lose, its readers and writers are told when they
// come to it. Nobody knows for how long claims are kept, so nothing is said of that.
func TestAStreamThatCanLoseWhatItAcknowledgedIsWarnedOf(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		storage natsjs.StorageType
		words   []string
	}{
		"one replica": {natsjs.FileStorage, []string{"has one replica", "check=replicas", "after a power failure", "sync_interval: always"}},
		"memory":      {natsjs.MemoryStorage, []string{"is in memory, with one replica", "check=storage", "a restart of the server loses its messages", "--storage file"}},
	} {
		for who, comes := range map[string]func(*bench, *testenv.Log){
			"subscriber": func(b *bench, log *testenv.Log) {
				sub := b.subscriber("group")
				sub.Logger = log.Logger()
				b.subscribe(sub, b.topic("orders"))
			},
			"sink": func(b *bench, log *testenv.Log) {
				sink := &jetstream.Sink{Conn: b.nc, Logger: log.Logger()}
				for id := range int64(3) { // it looks with the first batch
					for _, err := range sink.PublishBatch(ctx(t), []outbox.Row{{ID: id, Topic: b.topic("orders"), DedupID: fmt.Sprint(id)}}) {
						must(t, err)
					}
				}
			},
		} {
			t.Run(name+", "+who, func(t *testing.T) {
				t.Parallel()
				b := newBench(t, func(c *natsjs.StreamConfig) { c.Storage = test.storage })
				var log testenv.Log
				comes(b, &log)
				for _, words := range append(test.words, b.stream) {
					if log.Count(words) == 0 {
						t.Errorf("no %q in\n%s", words, log.String())
					}
				}
				if n := log.Count("level=WARN"); n != 1 {
					t.Errorf("%d warnings:\n%s", n, log.String())
				}
			})
		}
	}
}
