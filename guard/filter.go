package guard

import (
	"context"
	"database/sql"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/pgarray"
	"github.com/oncemill/oncemill/schema"
)

// query reads the parameters of a GET, and collects what is wrong with them.
type query struct {
	values url.Values
	wrong  []fieldError
}

func (c *call) query(known ...string) *query {
	values, err := url.ParseQuery(c.r.URL.RawQuery)
	q := &query{values: values}
	if err != nil {
		q.wrong = append(q.wrong, fieldError{Type: "query_parsing", Loc: []any{"query"}, Msg: "the query cannot be read: " + err.Error()})
	}
	for parameter, given := range values {
		if len(given) > 1 && slices.Contains(known, parameter) {
			q.fail(parameter, "duplicate", "Input should be there once")
		}
	}
	return q
}

// only refuses parameters that are not known: a misspelt one would make the answer one to
// another question. Where old clients ask it is not used.
func (q *query) only(known ...string) *query {
	for parameter := range q.values {
		if !slices.Contains(known, parameter) {
			q.fail(parameter, "extra_forbidden", "there is no such parameter; there are "+strings.Join(known, ", "))
		}
	}
	return q
}

func (q *query) fail(parameter, kind, msg string) {
	q.wrong = append(q.wrong, fieldError{Type: kind, Loc: []any{"query", parameter}, Msg: msg})
}

func (q *query) err() error {
	if len(q.wrong) == 0 {
		return nil
	}
	return invalidFields(q.wrong)
}

func (q *query) has(parameter string) bool { return q.values.Has(parameter) }

func (q *query) text(parameter string) string {
	s := q.values.Get(parameter)
	if len(s) > oncemill.MostName || strings.ToValidUTF8(s, "\x00") != s || strings.ContainsRune(s, 0) {
		q.fail(parameter, "string_type", fmt.Sprintf("Input should be at most %d bytes of UTF-8 without NUL", oncemill.MostName))
		return ""
	}
	return s
}

func (q *query) integer(parameter string, initial, least, most int) int {
	if !q.has(parameter) {
		return initial
	}
	n, err := strconv.Atoi(q.values.Get(parameter))
	if err != nil || n < least || n > most {
		q.fail(parameter, "int_parsing", fmt.Sprintf("Input should be a whole number from %d to %d", least, most))
		return initial
	}
	return n
}

func (q *query) time(parameter string) (t time.Time, ok bool) {
	if !q.has(parameter) {
		return t, false
	}
	if t, ok = timeOf(q.values.Get(parameter)); !ok {
		q.fail(parameter, "float_parsing", "Input should be a valid number of seconds since 1970")
	}
	return t, ok
}

func (q *query) decimal(parameter string) (s string, ok bool) {
	if !q.has(parameter) {
		return "", false
	}
	s = q.values.Get(parameter)
	if s == "" || (oncemill.ClaimOptions{Amount: s}).Check() != nil {
		q.fail(parameter, "decimal_parsing", "Input should be a decimal number such as 452.00")
		return "", false
	}
	return s, true
}

func (q *query) choice(parameter string, values ...string) string {
	s := q.values.Get(parameter)
	if q.has(parameter) && !slices.Contains(values, s) {
		q.fail(parameter, "enum", "Input should be one of "+strings.Join(values, ", "))
		return ""
	}
	return s
}

// A cursor is a place in a list that is in the order of time: behind the row with this
// time and this key or id.
type cursor struct {
	at  time.Time
	key string
}

func (c cursor) String() string {
	if c.at.IsZero() {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(c.at.UnixMicro(), 10) + " " + c.key))
}

func (q *query) cursor() (c cursor, ok bool) {
	if !q.has("cursor") {
		return c, false
	}
	text, err := base64.RawURLEncoding.DecodeString(q.values.Get("cursor"))
	at, key, found := strings.Cut(string(text), " ")
	us, failed := strconv.ParseInt(at, 10, 64)
	if err != nil || !found || failed != nil || us < -2e17 || us > 2e17 || strings.ToValidUTF8(key, "\x00") != key || strings.ContainsRune(key, 0) {
		q.fail("cursor", "cursor", "Input should be the next_cursor of an answer")
		return c, false
	}
	return cursor{time.UnixMicro(us), key}, true
}

// A filter collects the conditions of a list, and their arguments.
type filter struct {
	where []string
	args  []any
}

// arg returns the parameter that stands for a value.
func (f *filter) arg(value any) string {
	f.args = append(f.args, value)
	return "$" + strconv.Itoa(len(f.args))
}

func (f *filter) and(condition string) { f.where = append(f.where, condition) }

// equal adds a condition if the value is not empty.
func (f *filter) equal(column, value string) {
	if value != "" {
		f.and(column + " = " + f.arg(value))
	}
}

// times adds the conditions that all lists have.
func (f *filter) times(q *query, column string) {
	if from, ok := q.time("from_ts"); ok {
		f.and(column + " >= " + f.arg(from))
	}
	if to, ok := q.time("to_ts"); ok {
		f.and(column + " <= " + f.arg(to))
	}
}

func (f *filter) sql() string {
	return strings.Join(append([]string{"true"}, f.where...), " AND ")
}

// perConsumer reads up to limit rows of each of several consumers, each by an index of its
// own, and the first ones of all: no index has the claims of all consumers in the order
// of time. from is a table with an alias t.
func perConsumer(f *filter, from, order string, consumers []string, limit, offset int) string {
	return `
SELECT t.* FROM unnest(` + f.arg(pgarray.Of(consumers)) + `::text::text[]) AS who (name) CROSS JOIN LATERAL (
	SELECT * FROM ` + from + ` WHERE t.consumer = who.name AND ` + f.sql() + `
	ORDER BY ` + order + ` LIMIT ` + strconv.Itoa(limit+offset) + `
) AS t ORDER BY ` + order + ` LIMIT ` + strconv.Itoa(limit) + ` OFFSET ` + strconv.Itoa(offset)
}

// table is one of Oncemill's tables.
func (h *Handler) table(name string) string { return schema.Quote(h.Inbox.Schema) + "." + name }

// read runs a query and calls scan for each row.
func (h *Handler) read(ctx context.Context, text string, args []any, scan func(rows *sql.Rows) error) error {
	rows, err := h.Inbox.DB.QueryContext(ctx, text, args...)
	if err != nil {
		return tooSlow(ctx, err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return tooSlow(ctx, rows.Err())
}

// tooSlow says what helps if a list took too long.
func tooSlow(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != context.DeadlineExceeded {
		return err
	}
	return problem{
		status: http.StatusServiceUnavailable, code: "too_slow", log: err, retryAfter: 1,
		detail: "the list took too long: give from_ts and to_ts, or fewer filters",
	}
}
