package oncemill

import (
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"math"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// In a batch, what handlers write is sent together, in one round trip: ExecContext says
// that it has succeeded before it has run. It makes no difference to what is committed.
// Where a statement fails, Postgres aborts the transaction, and nothing that a handler
// could do after that would last: the batch is rolled back, and handled again with each
// statement sent at once. A query, or anything else that returns something, first sends
// what is pending, so the order of statements is kept, and a handler reads what it wrote.
//
// It is for statements that are run often, with lib/pq only, whose simple protocol takes
// several statements at once. They are prepared in the same text, and so parsed and
// planned once for all.
type deferred struct {
	tx       *sql.Tx
	text     []byte
	queries  map[string]string // the names they are prepared under
	prepare  []byte            // the text that prepares them
	order    []string          // of the names
	n        int
	sent     time.Time     // when Postgres last heard of the transaction
	patience time.Duration // for how long it may hear nothing, though handlers write

	// It waits for a row for hastyWait at most. Two batches that update many rows will most
	// likely get into a deadlock if one has to wait, which Postgres finds after a second.
	hasty bool

	err    error // of what it has sent
	gaveUp bool  // because the context ended of the statement that had it sent
}

const hastyWait = 100 * time.Millisecond

// mostDeferred is how much is pending at most.
const mostDeferred, mostDeferredBytes = 1000, 1 << 20

// writable is what deferred needs to know of a prepared query.
type writable struct {
	types string      // of the parameters, in parentheses
	bytea []bool      // for each parameter, whether it is one
	never atomic.Bool // its result matters to a handler
}

// add has a statement be pending, and returns its result. nil: it has to be sent at once.
func (d *deferred) add(query string, w *writable, args []any, s *share) sql.Result {
	if w == nil || w.never.Load() || len(args) != len(w.bytea) {
		return nil
	}
	name, known := d.queries[query]
	if !known {
		name = statementName()
	}
	text := append(append(append(d.text, "EXECUTE "...), name...), '(')
	for i, arg := range args {
		if i > 0 {
			text = append(text, ',')
		}
		var ok bool
		if text, ok = appendLiteral(text, arg, w.bytea[i]); !ok {
			return nil // and d.text is as it was
		}
	}
	d.text = append(text, ");\n"...)
	d.n++
	if !known {
		if d.queries == nil {
			d.queries = make(map[string]string)
		}
		d.queries[query] = name
		d.order = append(d.order, name)
		// With their types: if those of the table are others by now, that must not pass.
		d.prepare = append(d.prepare, "PREPARE "+name+" "+w.types+" AS "+query+"\n;\n"...)
	}
	return &deferredResult{w, s}
}

func (d *deferred) full() bool {
	return d.n >= mostDeferred || len(d.text) >= mostDeferredBytes || d.overdue()
}

// overdue reports whether Postgres would take the transaction for an idle one.
func (d *deferred) overdue() bool {
	return d != nil && d.n > 0 && time.Since(d.sent) > d.patience
}

// flush sends what is pending.
func (d *deferred) flush(ctx context.Context) error {
	if d == nil || d.n == 0 {
		return nil
	}
	var text strings.Builder
	text.Write(d.prepare)
	if d.hasty {
		text.WriteString("SET LOCAL lock_timeout = " + milliseconds(hastyWait) + ";\n")
	}
	text.Write(d.text)
	if d.hasty {
		text.WriteString("SET LOCAL lock_timeout = 0;\n") // as it was
	}
	for _, name := range d.order {
		text.WriteString("DEALLOCATE " + name + ";\n")
	}
	d.text, d.prepare, d.order, d.queries, d.n = d.text[:0], nil, nil, nil, 0
	_, err := d.tx.ExecContext(ctx, text.String())
	d.sent = time.Now()
	if err != nil && d.err == nil {
		d.err, d.gaveUp = err, ctx.Err() != nil
	}
	return err
}

func (d *deferred) hasFailed() bool { return d != nil && d.err != nil }

// Names of prepared statements, which no other session of a pooler has, and that were not
// used before: where a text fails, what it has prepared stays.
var (
	statementPrefix = "oncemill_" + strings.ToLower(rand.Text()[:8]) + "_"
	statementNumber atomic.Uint64
)

func statementName() string {
	return statementPrefix + strconv.FormatUint(statementNumber.Add(1), 10)
}

// deferredResult is what a handler gets of a statement that has not run. If it asks, it
// runs again, and so do all from then on that run this query.
type deferredResult struct {
	w *writable
	s *share
}

var errAsked = errors.New("oncemill: not known yet in a batch; the handler runs again, with this statement sent at once")

func (r *deferredResult) RowsAffected() (int64, error) {
	r.w.never.Store(true)
	r.s.asked = true
	return 0, errAsked
}

func (r *deferredResult) LastInsertId() (int64, error) {
	return 0, errors.New("LastInsertId is not supported by Postgres; use RETURNING")
}

// isWriting reports whether a query may be one that writes, by its first word.
func isWriting(query string) bool {
	switch word, _ := firstWord(skipSpace(query)); word {
	case "INSERT", "UPDATE", "DELETE", "MERGE", "WITH":
		return true
	}
	return false
}

// describe finds out what deferred needs to know of a query. nil: it is not for it.
func describe(ctx context.Context, db *sql.DB, query string) *writable {
	if !isWriting(query) {
		return nil
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return nil
	}
	defer tx.Rollback() //nolint:errcheck // there is nothing to be kept
	name := statementName()
	if _, err := tx.ExecContext(ctx, "PREPARE "+name+" AS "+query); err != nil {
		return nil
	}
	var types, oids string
	err = tx.QueryRowContext(ctx, `SELECT array_to_string(parameter_types::text[], ', '), array_to_string(parameter_types::oid[], ',')
		FROM pg_prepared_statements WHERE name = '`+name+`'`).Scan(&types, &oids)
	if _, other := tx.ExecContext(ctx, "DEALLOCATE "+name); err != nil || other != nil || types == "" {
		return nil
	}
	w := &writable{types: "(" + types + ")"}
	for oid := range strings.SplitSeq(oids, ",") {
		w.bytea = append(w.bytea, oid == "17")
	}
	return w
}

// appendLiteral appends an argument as it is sent to Postgres otherwise: as text of no type.
// It reports false for what it does not know how to.
func appendLiteral(dst []byte, arg any, bytea bool) ([]byte, bool) {
	value, err := driver.DefaultParameterConverter.ConvertValue(arg)
	if err != nil {
		return dst, false
	}
	switch v := value.(type) {
	case nil:
		return append(dst, "NULL"...), true
	case int64:
		return append(strconv.AppendInt(append(dst, '\''), v, 10), '\''), true
	case bool:
		return append(strconv.AppendBool(append(dst, '\''), v), '\''), true
	case float64:
		return append(strconv.AppendFloat(append(dst, '\''), v, 'f', -1, 64), '\''), !math.IsNaN(v) && !math.IsInf(v, 0)
	case time.Time:
		// Others have a format of their own, or stand for infinity.
		return append(v.AppendFormat(append(dst, '\''), "2006-01-02 15:04:05.999999999Z07:00:00"), '\''), v.Year() > 1 && v.Year() < 3000
	case string:
		if bytea {
			return appendBytes(dst, []byte(v)), true
		}
		return appendText(dst, v)
	case []byte:
		switch {
		case v == nil:
			return append(dst, "NULL"...), true
		case bytea:
			return appendBytes(dst, v), true
		}
		return appendText(dst, string(v))
	}
	return dst, false
}

func appendBytes(dst, b []byte) []byte {
	return append(hex.AppendEncode(append(dst, ` E'\\x`...), b), '\'')
}

// appendText quotes a text so that it reads the same with standard_conforming_strings off.
func appendText(dst []byte, text string) ([]byte, bool) {
	if !utf8.ValidString(text) || strings.IndexByte(text, 0) >= 0 {
		return dst, false
	}
	if strings.IndexByte(text, '\\') >= 0 {
		dst = append(dst, ' ', 'E')
	}
	dst = append(dst, '\'')
	for {
		i := strings.IndexAny(text, `\'`)
		if i < 0 {
			return append(append(dst, text...), '\''), true
		}
		dst = append(append(dst, text[:i+1]...), text[i])
		text = text[i+1:]
	}
}
