package oncemill_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
)

// countingDialer counts what is sent to Postgres.
type countingDialer struct{ writes atomic.Int64 }

type countingConn struct {
	net.Conn
	writes *atomic.Int64
}

func (c countingConn) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

func (d *countingDialer) Dial(network, address string) (net.Conn, error) {
	return d.DialTimeout(network, address, time.Minute)
}

func (d *countingDialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	conn, err := net.DialTimeout(network, address, timeout)
	return countingConn{conn, &d.writes}, err
}

// A batch costs as many round trips as one message does, or nearly so.
func TestWhatABatchWritesIsSentTogether(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	dialer := new(countingDialer)
	connector, err := pq.NewConnector(f.url)
	must(t, err)
	connector.Dialer(dialer)
	db := sql.OpenDB(connector)
	t.Cleanup(func() { db.Close() })
	b := newBatched(f, &oncemill.Inbox{DB: db, SendAtOnce: true})
	trips := func() int64 {
		before := dialer.writes.Load()
		must(t, errors.Join(b.run()...))
		return dialer.writes.Load() - before
	}
	b.effects("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
	if n := trips(); n < 12 {
		t.Errorf("%d round trips for 12 messages whose statements are to be sent at once", n)
	}
	f.exec(`DELETE FROM oncemill.claims`)
	b = newBatched(f, &oncemill.Inbox{DB: db})
	for i := range 50 {
		b.effects(fmt.Sprint(i))
	}
	// The gate's COMMIT; BEGIN, claim, effects, COMMIT. On another connection, the claim is prepared anew.
	if n := trips(); n > 12 {
		t.Errorf("%d round trips for 50 messages, want 5 or a few more", n)
	}
	for i := range 50 {
		b.wantOneEach(fmt.Sprint(i))
	}
}

// Arguments arrive as they do otherwise.
func TestArgumentsAreTheSameInABatch(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "lib/pq passes arguments otherwise with binary_parameters")
	f := newFixture(t)
	text := "it's \\ \"quoted\" \n\t $1 ; -- \U0001F600 é"
	body, _ := json.Marshal(map[string]any{"a": text})
	at := time.Date(2026, 2, 3, 4, 5, 6, 123456000, time.FixedZone("x", 5400))
	var none *string
	columns := []struct {
		kind string
		args []any
	}{
		{"text", []any{"", text, []byte(text), 7, -1.5, true, none, &text, nil, strings.Repeat("\\'", 1000), sql.NullString{}, sql.NullString{String: "x", Valid: true}}},
		{"bytea", []any{[]byte{}, []byte{0, 255, '\\', '\''}, text, nil, []byte(nil), bytes.Repeat([]byte{0xfe}, 3000)}},
		{"jsonb", []any{body, string(body), json.RawMessage(body), nil}},
		{"int", []any{7, int64(-7), "12", uint8(3), int32(math.MinInt32), nil}},
		{"bigint", []any{int64(math.MaxInt64), int64(math.MinInt64), uint32(5)}},
		{"numeric", []any{"12345678901234567890.5", 3, 0.1, float32(0.5)}},
		{"float8", []any{0.1, 1e300, math.SmallestNonzeroFloat64, math.Inf(1), math.NaN(), 5}},
		{"bool", []any{true, false, "yes", nil}},
		{"timestamptz", []any{at, at.UTC(), time.Time{}, time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), "2026-01-01"}},
		{"timestamp", []any{at, "2026-01-01"}},
		{"date", []any{at, at.UTC()}},
		{"interval", []any{"1 day", nil}},
		{"uuid", []any{"00000000-0000-0000-0000-0000000000ff", []byte("00000000-0000-0000-0000-0000000000ff")}},
		{"text[]", []any{pq.Array([]string{"a", `b"\`, "c'd"}), "{}", []string{"x"}}},
		{"bytea[]", []any{pq.Array([][]byte{{0, 1}, []byte("x")})}},
		{"int4range", []any{"[1,5)"}},
	}
	for i, column := range columns {
		f.exec(fmt.Sprintf(`CREATE TABLE once%d (n int, v %s); CREATE TABLE batch%d (n int, v %s)`, i, column.kind, i, column.kind))
	}
	single := f.consumer()
	b := newBatched(f, &oncemill.Inbox{})
	insert := func(table string, i, n int, arg any) func(context.Context, oncemill.Tx) error {
		query := fmt.Sprintf(`INSERT INTO %s%d /* ; */ VALUES ($1, $2) -- end`, table, i)
		return func(ctx context.Context, tx oncemill.Tx) error {
			_, err := tx.ExecContext(ctx, query, n, arg)
			return err
		}
	}
	must(t, closeAndWait(b))
	for i := range columns {
		for warm := range 4 {
			must(t, b.c.Once(within(t), fmt.Sprint("gate ", i, warm), insert("batch", i, -1, nil)))
		}
		f.exec(fmt.Sprintf(`DELETE FROM batch%d`, i))
	}
	b.shut()
	for i, column := range columns {
		for n, arg := range column.args {
			must(t, single.Once(within(t), fmt.Sprint("single ", i, n), insert("once", i, n, arg)))
			b.add(within(t), fmt.Sprint(i, " ", n), oncemill.ClaimOptions{}, insert("batch", i, n, arg))
		}
	}
	must(t, errors.Join(b.run()...))
	for i, column := range columns {
		if n := f.count(fmt.Sprintf(`SELECT count(*) FROM once%d AS o JOIN batch%d AS b ON o.n = b.n AND o.v::text IS NOT DISTINCT FROM b.v::text`, i, i)); n != len(column.args) {
			t.Errorf("%s: %d of %d values are the same", column.kind, n, len(column.args))
		}
		if n := f.count(fmt.Sprintf(`SELECT count(*) FROM batch%d`, i)); n != len(column.args) {
			t.Errorf("%s: %d rows, want %d", column.kind, n, len(column.args))
		}
	}
	if n := f.count(`SELECT count(DISTINCT xmin::text) FROM oncemill.claims WHERE consumer = 'test' AND key NOT LIKE 'gate%' AND key NOT LIKE 'single%'`); n != 1 {
		t.Errorf("%d transactions, want 1", n)
	}
}

func closeAndWait(b *batched) error {
	close(b.open)
	return <-b.gate
}

// What fails after its handler has returned is that handler's error nevertheless.
func TestAnErrorOfADeferredStatementIsItsHandlers(t *testing.T) {
	t.Parallel()
	for position := range 3 {
		t.Run(fmt.Sprint(position), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			b := newBatched(f, &oncemill.Inbox{})
			f.exec(`CREATE UNIQUE INDEX ON effects (name)`)
			f.exec(`INSERT INTO effects VALUES ('taken')`)
			var returned atomic.Int64
			for i := range 3 {
				if i != position {
					b.effects(fmt.Sprint("right ", i))
					continue
				}
				b.add(within(t), "wrong", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
					err := effect("taken")(ctx, tx)
					if err == nil {
						returned.Add(1)
					}
					return err
				})
			}
			for i, err := range b.run() {
				switch {
				case i != position:
					must(t, err)
				case !oncemill.IsHandlerError(err):
					t.Errorf("got %v, want the handler's error", err)
				default:
					wantText(t, err, "23505")
				}
			}
			if returned.Load() != 1 {
				t.Errorf("the statement was deferred %d times, want once", returned.Load())
			}
			b.wantNone("wrong")
			for i := range 3 {
				if i != position {
					b.wantOneEach(fmt.Sprint("right ", i))
				}
			}
		})
	}
}

// A handler may ask how many rows it has changed.
func TestRowsAffectedInABatch(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exec(`CREATE TABLE stock (id int PRIMARY KEY, n int); INSERT INTO stock VALUES (1, 2)`)
	b := newBatched(f, &oncemill.Inbox{})
	take := func(ctx context.Context, tx oncemill.Tx, ask bool) (rows int64, err error) {
		result, err := tx.ExecContext(ctx, `UPDATE stock SET n = n - 1 WHERE id = $1 AND n > 0`, 1)
		if err != nil || !ask {
			return 0, err
		}
		return result.RowsAffected()
	}
	must(t, closeAndWait(b))
	for i := range 4 {
		must(t, b.c.Once(within(t), fmt.Sprint("gate ", i), func(ctx context.Context, tx oncemill.Tx) error {
			_, err := take(ctx, tx, false)
			return err
		}))
	}
	f.exec(`UPDATE stock SET n = 2`)
	b.shut()
	got := make([]int64, 3)
	var asked atomic.Int64
	for i := range got {
		b.add(within(t), fmt.Sprint(i), oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) (err error) {
			asked.Add(1)
			got[i], err = take(ctx, tx, true)
			return err
		})
	}
	must(t, errors.Join(b.run()...))
	if got[0]+got[1]+got[2] != 2 || got[2] != 0 {
		t.Errorf("rows affected were %v, want 1, 1, 0", got)
	}
	if n := asked.Load(); n != 4 {
		t.Errorf("handlers ran %d times, want 4: the first asks in vain", n)
	}
}

// A handler reads what it has written, and what those before it have, in the order in
// which it was written, however that was sent.
func TestReadsSeeWhatIsDeferred(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	b := newBatched(f, &oncemill.Inbox{})
	count := func(ctx context.Context, tx oncemill.Tx) (n int) {
		must(t, tx.QueryRowContext(ctx, `SELECT count(*) FROM effects`).Scan(&n))
		return n
	}
	prepared, err := f.db.Prepare(`UPDATE effects SET name = 'seen ' || name WHERE name = $1`)
	must(t, err)
	defer prepared.Close()
	b.effects("a")
	b.add(within(t), "b", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
		if n := count(ctx, tx); n != 1 {
			t.Errorf("b sees %d rows, want a's", n)
		}
		must(t, effect("b")(ctx, tx))
		rows, err := tx.QueryContext(ctx, `SELECT name FROM effects WHERE name = $1`, "b")
		must(t, err)
		if !rows.Next() {
			t.Error("b does not see its own row")
		}
		return rows.Close()
	})
	b.add(within(t), "c", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
		must(t, effect("x")(ctx, tx))
		stmt := tx.StmtContext(ctx, prepared)
		must(t, effect("c")(ctx, tx))
		_, err := stmt.ExecContext(ctx, "x")
		must(t, err)
		_, err = stmt.ExecContext(ctx, "c")
		return err
	})
	b.add(within(t), "d", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
		if _, err := tx.ExecContext(ctx, `UPDATE effects SET name = name || '!' WHERE name LIKE 'seen %'`); err != nil {
			return err
		}
		return effect("d")(ctx, tx)
	})
	must(t, errors.Join(b.run()...))
	for _, name := range []string{"a", "b", "seen x!", "seen c!", "d"} {
		b.wantEffects(name, 1)
	}
}

// The tables may change while statements are prepared for them. That is nobody's fault.
func TestAQueryIsPreparedAnewWhenItsTablesChange(t *testing.T) {
	t.Parallel()
	for _, batch := range []int{0, 16} {
		t.Run(fmt.Sprint(batch), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			c := (&oncemill.Inbox{DB: f.db, Batch: batch}).Consumer("test")
			read := func(ctx context.Context, tx oncemill.Tx) error {
				rows, err := tx.QueryContext(ctx, `SELECT * FROM effects WHERE name = $1`, "x")
				if err != nil {
					return err
				}
				return errors.Join(rows.Close(), effect("y")(ctx, tx))
			}
			for i := range 6 {
				must(t, c.Once(within(t), fmt.Sprint("before ", i), read))
			}
			f.exec(`ALTER TABLE effects ADD COLUMN more int`)
			failures := 0
			for i := range 6 {
				err := c.Once(within(t), fmt.Sprint("after ", i), read)
				if err == nil {
					continue
				}
				failures++
				if oncemill.IsHandlerError(err) || !oncemill.IsSerialization(err) {
					t.Errorf("%v must not count, and may be tried again at once", err)
				}
				must(t, c.Once(within(t), fmt.Sprint("after ", i), read))
			}
			if failures > 1 {
				t.Errorf("%d messages failed, want one at most", failures)
			}
			f.wantEffects("y", 12)
		})
	}
}

// A column may become one of another type. What was found out about it before must not be
// taken for true: bytes would be sent as text.
func TestAColumnThatChangesItsType(t *testing.T) {
	t.Parallel()
	for _, batch := range []int{0, 16} {
		t.Run(fmt.Sprint(batch), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.exec(`CREATE TABLE bodies (body text)`)
			c := (&oncemill.Inbox{DB: f.db, Batch: batch}).Consumer("test")
			body := []byte(`\x41`) // as a text four characters, and as text of a bytea one byte
			insert := func(ctx context.Context, tx oncemill.Tx) error {
				_, err := tx.ExecContext(ctx, `INSERT INTO bodies VALUES ($1)`, body)
				return err
			}
			for i := range 6 {
				must(t, c.Once(within(t), fmt.Sprint("before ", i), insert))
			}
			f.exec(`ALTER TABLE bodies ALTER body TYPE bytea USING convert_to(body, 'UTF8')`)
			failures := 0
			for i := range 6 {
				for try := 0; ; try++ {
					err := c.Once(within(t), fmt.Sprint("after ", i), insert)
					if err == nil {
						break
					}
					failures++
					if try == 3 || !oncemill.IsSerialization(err) {
						t.Fatal(err)
					}
				}
			}
			if failures > 1 {
				t.Errorf("messages failed %d times, want once at most", failures)
			}
			if n := f.count(`SELECT count(*) FROM bodies WHERE body = $1`, body); n != 12 {
				t.Errorf("%d bodies are as they were sent, want 12", n)
			}
		})
	}
}
