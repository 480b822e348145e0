package ordered_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"sync"
	"time"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill/testcontainers/internal/lot"
)

// A body is the payload of a message. Key is "" where it has none.
type body struct {
	Key    string `json:"key"`
	Number int    `json:"number"`
}

// A producer writes messages to the outbox, and notes them in the table sent.
type producer struct {
	*performer
	db *sql.DB

	mu      sync.Mutex
	changed *sync.Cond
	keys    []*key // those that are its own
	left    int    // messages with keys that are not committed
	unkeyed int    // messages without that nobody has taken
}

// A key belongs to one producer, and to one transaction at a time.
type key struct {
	name  string
	total int
	sent  int
	busy  bool
}

// A message is about to be written.
type message struct {
	body
	uuid string
	key  *key // nil: none
}

// produce writes what the producer has to.
func (p *producer) produce(ctx context.Context) error {
	p.changed = sync.NewCond(&p.mu)
	for k, total := range shares(p.Load.Messages, p.Load.Keys, p.Load.Even) {
		if k%p.Load.Producers == p.Producer {
			p.keys = append(p.keys, &key{name: keyName(k), total: total})
			p.left += total
		}
	}
	p.unkeyed = (p.Load.Unkeyed + p.Producer) / p.Load.Producers
	p.Say("running")
	var writers sync.WaitGroup
	for w := range p.Load.Writers {
		writers.Go(func() { p.write(ctx, lot.Of(p.Seed, "writer", p.Producer, w)) })
	}
	writers.Wait()
	if ctx.Err() == nil {
		p.Say("finished")
		<-ctx.Done()
	}
	return nil
}

func (p *producer) write(ctx context.Context, draw *mathrand.Rand) {
	for ctx.Err() == nil {
		messages := p.take(draw)
		if messages == nil {
			return
		}
		p.transact(ctx, messages, draw)
		p.giveBack(messages)
		wait(ctx, time.Duration(draw.Int64N(int64(p.Load.Pause)+1)))
	}
}

// take returns the messages of a transaction, whose keys are nobody else's until they
// are given back; nil if all are written.
func (p *producer) take(draw *mathrand.Rand) (messages []message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	keys, each, plain := 1, 1, 0
	if !p.Load.Simple {
		keys, each, plain = 1+draw.IntN(3), 3, draw.IntN(3)
	}
	for p.left > 0 || p.unkeyed > 0 {
		for range keys {
			if k := p.free(draw); k != nil {
				k.busy = true
				for range min(1+draw.IntN(each), k.total-k.sent) {
					messages = append(messages, message{body{Key: k.name}, rand.Text(), k})
				}
			}
		}
		if p.left == 0 {
			plain = 10
		}
		for range min(plain, p.unkeyed) {
			p.unkeyed--
			messages = append(messages, message{uuid: rand.Text()})
		}
		if messages != nil {
			return mixed(messages, draw)
		}
		p.changed.Wait()
	}
	return nil
}

// free returns a key that no transaction has and that has something left, the more
// likely the more that is; nil if there is none.
func (p *producer) free(draw *mathrand.Rand) *key {
	sum := 0
	for _, k := range p.keys {
		if !k.busy {
			sum += k.total - k.sent
		}
	}
	if sum == 0 {
		return nil
	}
	for n, i := draw.IntN(sum), 0; ; i++ {
		if k := p.keys[i]; !k.busy {
			if n -= k.total - k.sent; n < 0 {
				return k
			}
		}
	}
}

// mixed shuffles messages, and then numbers those of each key.
func mixed(messages []message, draw *mathrand.Rand) []message {
	draw.Shuffle(len(messages), func(i, j int) { messages[i], messages[j] = messages[j], messages[i] })
	numbers := make(map[*key]int)
	for i, m := range messages {
		if m.key != nil {
			numbers[m.key]++
			messages[i].Number = m.key.sent + numbers[m.key]
		}
	}
	return messages
}

// giveBack frees the keys of messages.
func (p *producer) giveBack(messages []message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range messages {
		if m.key != nil {
			m.key.busy = false
		}
	}
	p.changed.Broadcast()
}

// transact writes messages in a transaction, which may roll back or commit late. Those
// without a key that are not committed are owed again.
func (p *producer) transact(ctx context.Context, messages []message, draw *mathrand.Rand) {
	committed, err := p.attempt(ctx, messages, draw)
	for err != nil && ctx.Err() == nil { // Postgres is away: was it committed?
		wait(ctx, 20*time.Millisecond)
		err = p.db.QueryRowContext(ctx, `SELECT count(*) > 0 FROM sent WHERE uuid = $1`, messages[0].uuid).Scan(&committed)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range messages {
		switch {
		case committed && m.key != nil:
			m.key.sent++
			p.left--
		case !committed && m.key == nil:
			p.unkeyed++
		}
	}
}

func (p *producer) attempt(ctx context.Context, messages []message, draw *mathrand.Rand) (committed bool, err error) {
	tx, err := p.db.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer tx.Rollback()
	for _, m := range messages {
		if err := p.insert(ctx, tx, m); err != nil {
			return false, err
		}
	}
	if p.Load.Simple {
		return true, tx.Commit()
	}
	if oneIn(draw, 20) {
		p.Say("undone")
		return false, tx.Rollback()
	}
	if oneIn(draw, 25) {
		p.Say("late")
		wait(ctx, time.Duration(draw.Int64N(int64(400*time.Millisecond))))
	}
	wait(ctx, time.Duration(draw.Int64N(int64(8*time.Millisecond))))
	return true, tx.Commit()
}

// insert writes one message.
func (p *producer) insert(ctx context.Context, tx *sql.Tx, m message) error {
	payload, err := json.Marshal(m.body)
	if err != nil {
		return err
	}
	orderingKey := []byte(m.Key)
	if m.key == nil {
		orderingKey = nil
	}
	_, err = tx.ExecContext(ctx, `
		WITH written AS (
			INSERT INTO oncemill.outbox (topic, uuid, ordering_key, payload) VALUES ($1, $2, $3, $4)
			RETURNING id, dedup_id
		)
		INSERT INTO sent (uuid, key, number, id, dedup_id) SELECT $2, $5, $6, id, dedup_id FROM written`,
		p.Topic, m.uuid, orderingKey, payload, m.Key, m.Number)
	return err
}

// sentSQL is the table of what was committed. Messages without a key have the key "".
const sentSQL = `
	CREATE TABLE sent (
		uuid     text PRIMARY KEY,
		key      text NOT NULL,
		number   integer NOT NULL,
		id       bigint NOT NULL,
		dedup_id uuid NOT NULL,
		at       timestamptz NOT NULL DEFAULT clock_timestamp()
	);
	CREATE UNIQUE INDEX ON sent (key, number) WHERE key <> '';
	CREATE TABLE freed (uuid text NOT NULL, dedup_id uuid NOT NULL);`

// An operator gives parked messages another try, as the README says, until ctx ends.
// The table freed notes their new dedup ids.
func operate(ctx context.Context, db *sql.DB) error {
	for ; ctx.Err() == nil; wait(ctx, 100*time.Millisecond) {
		_, err := db.ExecContext(ctx, `
			WITH freed_now AS (
				UPDATE oncemill.outbox
				SET parked_at = NULL, not_before = NULL, attempts = 0, dedup_id = gen_random_uuid()
				WHERE parked_at IS NOT NULL
				RETURNING uuid, dedup_id
			)
			INSERT INTO freed SELECT uuid, dedup_id FROM freed_now`)
		var refusal *pq.Error
		if errors.As(err, &refusal) && refusal.Code.Class() == "42" {
			return fmt.Errorf("free what is parked: %w", err)
		}
	}
	return nil
}
