package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
)

// Each of these counts something that has to be a number, and says what.
const (
	effectsSQL = `SELECT count(*) FROM effects`
	keysSQL    = `SELECT count(DISTINCT key) FROM effects`
	hotSQL     = `SELECT sum(balance) FROM accounts`
	claimsSQL  = `SELECT count(*) FROM oncemill.claims`
	claimedSQL = `SELECT count(*) FROM effects e JOIN oncemill.claims c ON c.consumer = '` + consumer + `' AND c.key = e.key AND c.outcome = 'settled'`
	rowsSQL    = `SELECT count(*) FROM oncemill.outbox`
	sentSQL    = `SELECT count(DISTINCT uuid) FROM oncemill.outbox`
	answersSQL = `SELECT count(*) FROM effects e JOIN oncemill.outbox o ON o.uuid = e.key AND convert_from(o.payload, 'UTF8') = e.payload`
	hotSentSQL = `SELECT count(*) FROM oncemill.outbox o JOIN oncemill.claims c ON c.consumer = '` + consumer + `' AND c.key = o.uuid`
	oldSQL     = `SELECT count(*) FROM oncemill.claims WHERE settled_at < now() - interval '7 days'`
)

// A count is what a turn wants a query to say.
type count struct {
	what  string
	query string
	want  int
}

// verify makes the counts, and returns an error for those that are wrong.
func (d *database) verify(ctx context.Context, counts ...count) (wrong error) {
	for _, c := range counts {
		var got int
		if err := d.db.QueryRowContext(ctx, c.query).Scan(&got); err != nil {
			return fmt.Errorf("count %s: %w", c.what, err)
		}
		if got != c.want {
			wrong = errors.Join(wrong, fmt.Errorf("there are %d %s, want %d", got, c.what, c.want))
		}
	}
	return wrong
}

func effects(n int) []count {
	return []count{{"effects", effectsSQL, n}, {"messages with an effect", keysSQL, n}}
}

// once are the counts that hold where each message has one claim, one effect and one row.
func once(n, claimsBefore int) []count {
	return append(effects(n),
		count{"claims", claimsSQL, claimsBefore + n},
		count{"effects with their claim", claimedSQL, n},
		count{"rows in the outbox", rowsSQL, n},
		count{"messages in the outbox", sentSQL, n},
		count{"effects with their row in the outbox", answersSQL, n})
}

// handled wants what handlers have left, and that their messages were acknowledged.
func (s *stage) handled(ctx context.Context, t *turn, left ...count) error {
	if err := t.db.verify(ctx, left...); err != nil {
		return err
	}
	return s.wantAcked(ctx, t)
}

func checkOnce(ctx context.Context, s *stage, t *turn) error {
	return s.handled(ctx, t, once(t.messages, t.claims)...)
}

func checkPurged(ctx context.Context, s *stage, t *turn) error {
	if err := t.db.verify(ctx, count{"old claims", oldSQL, 0}); err != nil {
		return err
	}
	return checkOnce(ctx, s, t)
}

func checkPlain(ctx context.Context, s *stage, t *turn) error {
	return s.handled(ctx, t, effects(t.messages)...)
}

func checkHot(ctx context.Context, s *stage, t *turn) error {
	return s.handled(ctx, t, count{"effects", hotSQL, t.messages})
}

// hotOnce are the counts where the effects cannot be told apart.
func hotOnce(n, claimsBefore int) []count {
	return []count{
		{"effects", hotSQL, n},
		{"claims", claimsSQL, claimsBefore + n},
		{"rows in the outbox", rowsSQL, n},
		{"messages in the outbox with their claim", hotSentSQL, n},
	}
}

func checkOnceHot(ctx context.Context, s *stage, t *turn) error {
	return s.handled(ctx, t, hotOnce(t.messages, t.claims)...)
}

func checkRelayed(ctx context.Context, s *stage, t *turn) error {
	if err := t.db.verify(ctx, count{"rows in the outbox", rowsSQL, 0}); err != nil {
		return err
	}
	return checkStream(ctx, s, t)
}

// checkStream wants every message in the stream that was published to, once.
func checkStream(ctx context.Context, s *stage, t *turn) error {
	if err := s.wantMessages(ctx, t.setting.Out, t.messages); err != nil {
		return err
	}
	different, err := s.uuids(ctx, t.setting.Out, t.messages)
	if err == nil && different != t.messages {
		err = fmt.Errorf("there are %d different messages in stream %s, want %d", different, t.setting.Out, t.messages)
	}
	return err
}

// wantMessages wants a stream to have as many.
func (s *stage) wantMessages(ctx context.Context, name string, n int) error {
	stream, err := s.js.Stream(ctx, name)
	if err != nil {
		return err
	}
	if got := stream.CachedInfo().State.Msgs; got != uint64(n) {
		return fmt.Errorf("there are %d messages in stream %s, want %d", got, name, n)
	}
	return nil
}

// uuids counts the different ones in a stream.
func (s *stage) uuids(ctx context.Context, name string, messages int) (different int, err error) {
	reader, err := s.js.OrderedConsumer(ctx, name, natsjs.OrderedConsumerConfig{HeadersOnly: true})
	if err != nil {
		return 0, err
	}
	all, err := reader.Messages(natsjs.PullMaxMessages(5000))
	if err != nil {
		return 0, err
	}
	defer all.Stop()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	seen := make(map[string]struct{}, messages)
	for range messages {
		msg, err := all.Next(natsjs.NextContext(ctx))
		if err != nil {
			return len(seen), fmt.Errorf("read stream %s: %w", name, err)
		}
		seen[msg.Headers().Get(jetstream.UUIDHeader)] = struct{}{}
	}
	return len(seen), nil
}

// ackLimit is how long the server may take to note the last acknowledgements.
const ackLimit = 5 * time.Second

// wantAcked wants every message of a turn to be acknowledged, where our subscriber was at
// work. That of watermill-nats removes its consumer.
func (s *stage) wantAcked(ctx context.Context, t *turn) error {
	if t.role != "once" && t.role != "plain" {
		return nil
	}
	deadline := time.Now().Add(ackLimit)
	for {
		flow, err := s.broker.Look(ctx, t.setting.Topic, consumer)
		switch {
		case err != nil:
			return err
		case flow.Waiting == 0:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("%d messages are not acknowledged", flow.Waiting)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
