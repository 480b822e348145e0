package consumers_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

// until runs something until stop is called.
func until(t *testing.T, run func(ctx context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// A consumer has handled some messages when the stream loses all that it has. The replay
// brings what was not handled yet, and what was is dropped.
func TestWhatAStreamHasLostIsReplayedAndHandledOnce(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	s := newSystem(t)
	const keys, each = 10, 20
	topic := s.topic("orders")
	_, err := s.db.Exec(`ALTER TABLE effects ADD UNIQUE (name)`) // a second effect would fail
	must(t, err)
	publish := func(from, to int) {
		var msgs []*message.Message
		for n := from; n < to; n++ {
			for k := range keys {
				name := fmt.Sprintf("%d/%d", k, n)
				msg := message.NewMessage(name, []byte(name))
				msg.Metadata.Set(outbox.OrderingKeyMetadata, fmt.Sprint(k))
				msgs = append(msgs, msg)
			}
		}
		must(t, (&outbox.Publisher{DB: s.db, Notify: s.db}).Publish(topic, msgs...))
	}
	consume := func() (stop func()) {
		router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
		must(t, err)
		router.AddConsumerHandler("orders", topic, s.subscriber("orders"), func(msg *message.Message) error {
			tx, _ := oncemill.TxFromContext(msg.Context())
			_, err := tx.ExecContext(msg.Context(), `INSERT INTO effects VALUES ($1)`, string(msg.Payload))
			return err
		})
		must(t, s.stack.Apply(within(t), router))
		stop = until(t, router.Run)
		<-router.Running()
		return stop
	}
	until(t, (&outbox.Relay{DB: s.db, Sink: &jetstream.Sink{Conn: s.conn}, ListenURL: s.url, Keep: time.Hour}).Run)

	publish(0, each/2)
	stop := consume()
	s.settled(1)
	stop()
	publish(each/2, each)
	waitFor(t, func() bool { return count(t, s.db, `SELECT count(*) FROM oncemill.published`) == keys*each })
	must(t, s.stream().Purge(within(t)))
	s.want(`SELECT count(*) FROM effects`, keys*each/2)

	n, err := (&outbox.Admin{DB: s.db}).Replay(within(t), outbox.Replay{Since: time.Unix(0, 0)})
	must(t, err)
	if n != keys*each {
		t.Errorf("%d messages were put back, want %d", n, keys*each)
	}
	waitFor(t, func() bool { return s.arrived(topic) == keys*each })
	wantOrder(t, s, keys)
	consume()
	s.settled(1)
	s.want(`SELECT count(*) FROM effects`, keys*each)
	s.want(`SELECT count(DISTINCT name) FROM effects`, keys*each)
	s.want(`SELECT count(*) FROM oncemill.claims WHERE outcome <> 'settled'`, 0)
}

// wantOrder wants the stream to have the messages of each key in their order.
func wantOrder(t *testing.T, s *system, keys int) {
	t.Helper()
	info, err := s.stream().Info(within(t))
	must(t, err)
	next := make(map[string]int)
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq; seq++ {
		msg, err := s.stream().GetMsg(within(t), seq)
		must(t, err)
		key, n, _ := strings.Cut(string(msg.Data), "/")
		if n != fmt.Sprint(next[key]) {
			t.Errorf("key %s: %s came where %d belongs", key, n, next[key])
		}
		next[key]++
	}
	if len(next) != keys {
		t.Errorf("messages of %d keys came, want %d", len(next), keys)
	}
}

// waitFor waits for what nothing signals.
func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for ctx := within(t); !done(); time.Sleep(10 * time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatal("did not happen")
		}
	}
}
