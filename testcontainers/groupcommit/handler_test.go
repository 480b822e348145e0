package groupcommit_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/lib/pq"

	"github.com/oncemill/oncemill"
)

// tablesSQL makes what handlers write to. None of it refuses what happens twice.
const tablesSQL = `
CREATE TABLE effects (key text NOT NULL, worker text NOT NULL, run integer NOT NULL, messages integer NOT NULL, hot integer[] NOT NULL, tenant text NOT NULL);
CREATE TABLE hot (id integer PRIMARY KEY, n integer NOT NULL DEFAULT 0);
CREATE SCHEMA elsewhere;
CREATE TABLE elsewhere.effects (LIKE effects);
CREATE TABLE elsewhere.hot (LIKE hot)`

const effectSQL = `INSERT INTO effects (key, worker, run, messages, hot, tenant) VALUES ($1, $2, $3, $4, $5, COALESCE(current_setting('test.tenant', true), ''))`

// A run is one call of the handler.
type run struct {
	w      *worker
	msg    *message.Message
	tx     oncemill.Tx
	number int // of the message
	nth    int // of this process, for this message
	shape
}

// handle is the handler. It writes its effect and raises counters, and publishes or
// returns a message or two; then its fate comes.
func (w *worker) handle(msg *message.Message) ([]*message.Message, error) {
	number, err := strconv.Atoi(msg.Metadata.Get("number"))
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.runs[number]++
	r := &run{w: w, msg: msg, number: number, nth: w.runs[number]}
	w.mu.Unlock()
	r.shape = shapeOf(w.Seed, w.Name, number, r.nth)
	f := fateOf(w.Seed, w.Name, number, r.nth)
	switch {
	case w.Calm:
		f, r.hot = succeeds, []int{}
	case w.IdleEvery > 0 && number%w.IdleEvery == 0 && r.nth == 1:
		f = idles
	}
	w.tell(msg.UUID, "run %d %s, %d messages, %d of them published, raises %v", r.nth, f, r.messages, r.published, r.hot)
	r.lookForTraces()
	if err := r.write(); err != nil {
		w.tell(msg.UUID, "run %d could not write: %v", r.nth, err)
		return nil, err
	}
	if w.Fault == dieInHandler || w.Fault == freezeInHandler {
		w.Suffer(w.Fault == freezeInHandler, 10*w.After, msg.UUID)
	}
	return r.meet(f)
}

// lookForTraces wants nothing of what an earlier run has done to its message, and does
// the same itself.
func (r *run) lookForTraces() {
	if string(r.msg.Payload) != string(payloadOf(r.number)) || len(r.msg.Metadata) != 1 {
		r.w.Say("amiss %s run %d finds %q, %v", r.msg.UUID, r.nth, r.msg.Payload, r.msg.Metadata)
	}
	for i := range r.msg.Payload {
		r.msg.Payload[i] = 'x'
	}
	r.msg.Metadata.Set("trace", "of an earlier run")
}

func (r *run) write() error {
	var ok bool
	ctx := r.msg.Context()
	if r.tx, ok = oncemill.TxFromContext(ctx); !ok {
		return errors.New("no transaction in the context")
	}
	if _, err := r.tx.ExecContext(ctx, effectSQL, r.msg.UUID, r.w.Name, r.nth, r.messages, pq.Array(r.hot)); err != nil {
		return err
	}
	for _, id := range r.hot {
		if _, err := r.tx.ExecContext(ctx, `UPDATE hot SET n = n + 1 WHERE id = $1`, id); err != nil {
			return err
		}
	}
	return errors.Join(r.publish(r.outgoing(0, r.published)...), r.tryStale())
}

func (r *run) publish(msgs ...*message.Message) error {
	for _, msg := range msgs {
		msg.SetContext(r.msg.Context())
	}
	return r.w.direct.Publish("receipts", msgs...)
}

// outgoing returns the run's messages from one to another, which say whose they are.
func (r *run) outgoing(from, to int) (msgs []*message.Message) {
	for n := from; n < to; n++ {
		msg := message.NewMessage("", nil)
		msg.Metadata = message.Metadata{"key": r.msg.UUID, "worker": r.w.Name, "run": strconv.Itoa(r.nth), "number": strconv.Itoa(n)}
		msgs = append(msgs, msg)
	}
	return msgs
}

var errWanted = errors.New("the test wants it to fail")

// meet has the run end as its fate says.
func (r *run) meet(f fate) ([]*message.Message, error) {
	ctx, returned := r.msg.Context(), r.outgoing(r.published, r.messages)
	switch f {
	case fails:
		return returned, errWanted
	case failsLater:
		return nil, errors.Join(r.publish(returned...), errWanted)
	case panics:
		panic(fmt.Sprintf("%s: %v", r.msg.UUID, errWanted))
	case swallows:
		_, _ = r.tx.ExecContext(ctx, `SELECT 1 / 0`)
	case recovers:
		return returned, r.recover()
	case dawdles:
		time.Sleep(r.w.BatchTime + 20*time.Millisecond)
	case idles:
		time.Sleep(r.w.IdleTimeout + r.w.IdleTimeout/2)
	case hurries, shrugs:
		hurry, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
		defer cancel()
		_, err := r.tx.ExecContext(hurry, `SELECT pg_sleep(5)`)
		if f == hurries {
			return returned, err
		}
	case nacks:
		r.msg.Nack()
	case leaves:
		return returned, r.open(ctx)
	case abandons:
		own, cancel := context.WithCancel(ctx)
		defer cancel()
		return returned, r.open(own)
	case commits:
		_, _ = r.tx.ExecContext(ctx, `COMMIT`)
	case undoes:
		_, err := r.tx.ExecContext(ctx, `ROLLBACK TO before`)
		return returned, err
	case sets:
		return returned, r.set()
	case lingers:
		return returned, r.linger()
	}
	return returned, nil
}

// set sets what holds until the end of the transaction: the tenant for row-level security,
// or where tables are. There is another table effects, which nobody reads.
func (r *run) set() error {
	statement := `SET LOCAL search_path = elsewhere`
	if r.number%2 == 0 {
		statement = `SELECT set_config('test.tenant', 'of ' || current_user, true)`
	}
	_, err := r.tx.ExecContext(r.msg.Context(), statement)
	return err
}

// open leaves rows open, as a handler does that forgets to close them.
func (r *run) open(ctx context.Context) error {
	rows, err := r.tx.QueryContext(ctx, `SELECT repeat('x', 100) FROM generate_series(1, 1000)`) //nolint:sqlclosecheck // that is the point
	if err == nil {
		rows.Next()
	}
	return err
}

// recover has a statement fail that is not the transaction's end.
func (r *run) recover() error {
	for _, statement := range []string{`SAVEPOINT before`, `SELECT 1 / 0`, `ROLLBACK TO before`} {
		_, err := r.tx.ExecContext(r.msg.Context(), statement)
		if err != nil && statement != `SELECT 1 / 0` {
			return err
		}
	}
	return nil
}

// A stale transaction is what a run that lingers has left.
type stale struct {
	tx oncemill.Tx
	id string
}

// linger leaves the transaction to the next run.
func (r *run) linger() error {
	id, err := r.transaction()
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	r.w.stale = &stale{r.tx, id}
	return err
}

// tryStale wants what an earlier run was lent to have ended, though this run has the same
// transaction.
func (r *run) tryStale() error {
	r.w.mu.Lock()
	left := r.w.stale
	r.w.stale = nil
	r.w.mu.Unlock()
	if left == nil {
		return nil
	}
	id, err := r.transaction()
	if err != nil || id != left.id {
		return err
	}
	r.w.Say("stale")
	if _, err := left.tx.ExecContext(context.Background(), `SELECT 1`); !errors.Is(err, oncemill.ErrTxEnded) {
		r.w.Say("amiss %s can use what an earlier run was lent: %v", r.msg.UUID, err)
	}
	return nil
}

// transaction identifies the run's transaction.
func (r *run) transaction() (id string, err error) {
	err = r.tx.QueryRowContext(r.msg.Context(), `SELECT pg_current_xact_id()::text`).Scan(&id)
	return id, err
}
