package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/examples/internal/stats"
	"github.com/oncemill/oncemill/outbox"
)

// A sender writes a message to the table of a relay, in a transaction. committed is called
// when that is over.
type sender func(tx *sql.Tx, msg *message.Message) (committed func(), err error)

// relayLatency is that of Oncemill's relay.
func relayLatency(ctx context.Context, s *stage, t *turn) (float64, error) {
	if err := t.db.clear(ctx, true); err != nil {
		return 0, err
	}
	publisher := &outbox.Publisher{Notify: t.db.db}
	p99, err := s.latency(ctx, t, func(tx *sql.Tx, msg *message.Message) (func(), error) {
		return publisher.Wake, publisher.InTx(tx).Publish(t.setting.Out, msg)
	})
	if err != nil {
		return 0, err
	}
	return p99, t.db.verify(ctx, count{"rows in the outbox", rowsSQL, 0})
}

// forwarderLatency is that of watermill-sql's forwarder.
func forwarderLatency(ctx context.Context, s *stage, t *turn) (float64, error) {
	if err := t.db.clear(ctx, true); err != nil {
		return 0, err
	}
	if err := makeForwarderTable(t); err != nil {
		return 0, err
	}
	return s.latency(ctx, t, func(tx *sql.Tx, msg *message.Message) (func(), error) {
		publisher, err := enveloping(tx, t.setting.Topic)
		if err != nil {
			return nil, err
		}
		return func() {}, publisher.Publish(t.setting.Out, msg)
	})
}

// latency sends messages at a fixed pace, each in a transaction with an effect, and
// returns the p99 of the times from their commits to their delivery, in milliseconds.
func (s *stage) latency(ctx context.Context, t *turn, send sender) (p99 float64, err error) {
	db, err := openPool(ctx, t.db.worker, 4*spare)
	if err != nil {
		return 0, err
	}
	defer db.Close()
	if err := s.broker.Create(ctx, memory, t.setting.Out); err != nil {
		return 0, err
	}
	p := &passage{db: db, send: send, committed: make(map[string]time.Time), arrived: make(map[string]time.Time)}
	stop, err := p.listen(ctx, s.js, t.setting.Out)
	if err != nil {
		return 0, err
	}
	defer stop()
	if _, err := s.spawn(t); err != nil {
		return 0, err
	}
	// The first shows that everybody is at work, and does not count.
	first := newKeys(false).next()
	for _, messages := range [][]string{{first}, manyKeys(t.messages)} {
		if err := s.pass(ctx, t, p, messages); err != nil {
			return 0, err
		}
	}
	if err := s.crew.StopAll(ctx, "broker"); err != nil {
		return 0, err
	}
	t.messages++
	if err := checkStream(ctx, s, t); err != nil {
		return 0, err
	}
	return stats.Percentile99(p.times(first)).Seconds() * 1000, s.removeStreams(ctx, t)
}

func manyKeys(n int) (all []string) {
	for made := newKeys(false); len(all) < n; {
		all = append(all, made.next())
	}
	return all
}

// pass sends messages, and returns when all have arrived.
func (s *stage) pass(ctx context.Context, t *turn, p *passage, messages []string) error {
	sent := make(chan error, 1)
	before := p.count()
	go func() { sent <- p.sendAll(ctx, messages, s.options.pace) }()
	over := false
	return s.crew.Attend(ctx, func() (bool, error) {
		got := p.count() - before
		s.screen.Status(fmt.Sprintf("%s: %d of %d", t.contender.name, got, len(messages)))
		select {
		case err := <-sent:
			over = true
			return false, err
		default:
			return over && got == len(messages), nil
		}
	})
}

// A passage notes when messages were committed, and when they arrived downstream.
type passage struct {
	db   *sql.DB
	send sender

	mu                 sync.Mutex
	committed, arrived map[string]time.Time
}

// listen notes what arrives in a stream.
func (p *passage) listen(ctx context.Context, js natsjs.JetStream, stream string) (stop func(), err error) {
	consumer, err := js.OrderedConsumer(ctx, stream, natsjs.OrderedConsumerConfig{})
	if err != nil {
		return nil, err
	}
	listening, err := consumer.Consume(func(msg natsjs.Msg) {
		now := time.Now()
		p.mu.Lock()
		defer p.mu.Unlock()
		if key := msg.Headers().Get(jetstream.UUIDHeader); p.arrived[key].IsZero() {
			p.arrived[key] = now
		}
	})
	if err != nil {
		return nil, err
	}
	return listening.Stop, nil
}

func (p *passage) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.arrived)
}

// sendAll sends messages when they are due, whether those before are committed or not.
func (p *passage) sendAll(ctx context.Context, messages []string, pace int) error {
	errs := make([]error, len(messages))
	var sending sync.WaitGroup
	begun := time.Now()
	for i, key := range messages {
		time.Sleep(time.Until(begun.Add(time.Duration(i) * time.Second / time.Duration(pace))))
		if ctx.Err() != nil {
			break
		}
		sending.Go(func() { errs[i] = p.sendOne(ctx, key) })
	}
	sending.Wait()
	return errors.Join(errs...)
}

func (p *passage) sendOne(ctx context.Context, key string) error {
	tx, err := p.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, insertSQL, key, string(payload(key))); err != nil {
		return err
	}
	committed, err := p.send(tx, message.NewMessage(key, payload(key)))
	if err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	now := time.Now()
	committed()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.committed[key] = now
	return nil
}

// times are how long each message took, but for one.
func (p *passage) times(but string) (all []time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, at := range p.committed {
		if key != but {
			all = append(all, p.arrived[key].Sub(at))
		}
	}
	return all
}
