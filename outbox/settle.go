package outbox

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// maxErrorText is how much of an error is kept in the table, in bytes.
const maxErrorText = 2000

// verdicts says what is to become of a batch's rows.
type verdicts struct {
	published   []int64         // ids of the rows to delete
	failed      []failure       // rows to defer or park
	took        map[string]bool // topics of these
	untouched   []Row           // rows to leave as they are, without what they carry
	waiting     int             // rows that were not handed to the Sink, after another one of their key
	slowest     time.Duration   // of the Sink's calls
	unavailable error           // why
}

func newVerdicts(f *fetched) *verdicts {
	return &verdicts{failed: f.broken, took: make(map[string]bool)}
}

// A failure is a row that was not published, through its own fault.
type failure struct {
	row   Row
	err   error
	park  bool          // do not try again
	pause time.Duration // try again after this time
}

// settle writes the verdicts down.
func (v *verdicts) settle(ctx context.Context, tx *sql.Tx, r *Relay) error {
	if err := r.removePublished(ctx, tx, v.published); err != nil {
		return err
	}
	return fail(ctx, tx, r.table(), v.failed)
}

// longRun is how many ids one after another are worth a statement of their own.
const longRun = 50

// remove deletes rows, given their ids in order. They are written into the
// statement because arguments cost a round trip and drivers do not agree on arrays.
// A range is found faster than each of its ids; a run has no others in it.
func remove(ctx context.Context, tx *sql.Tx, table string, ids []int64) error {
	if len(ids) == 0 {
		return nil
	}
	query := make([]byte, 0, 256)
	single := make([]byte, 0, 256)
	for len(ids) > 0 {
		n := run(ids)
		if n >= longRun {
			query = fmt.Appendf(query, `DELETE FROM %s WHERE id BETWEEN '%d'::bigint AND '%d'::bigint;`, table, ids[0], ids[n-1])
		} else {
			for _, id := range ids[:n] {
				single = append(strconv.AppendInt(single, id, 10), ',')
			}
		}
		ids = ids[n:]
	}
	if n := len(single); n > 0 {
		query = fmt.Appendf(query, `DELETE FROM %s WHERE id = ANY ('{%s}'::bigint[])`, table, single[:n-1])
	}
	_, err := tx.ExecContext(ctx, string(query))
	return err
}

// run returns how many of the ids follow one another without a gap.
func run(ids []int64) int {
	n := 1
	for n < len(ids) && ids[n] == ids[n-1]+1 {
		n++
	}
	return n
}

// fail defers or parks rows. The clock is that of the statement, because the
// transaction began before the rows were published. Attempts that SQL has written do not
// overflow: that would fail the whole batch, for ever.
func fail(ctx context.Context, tx *sql.Tx, table string, failed []failure) error {
	if len(failed) == 0 {
		return nil
	}
	type change struct {
		ID    int64   `json:"id"`
		Error string  `json:"error"`
		Park  bool    `json:"park"`
		Pause float64 `json:"pause"` // seconds
	}
	changes := make([]change, len(failed))
	for i, f := range failed {
		changes[i] = change{f.row.ID, errorText(f.err), f.park, f.pause.Seconds()}
	}
	list, err := json.Marshal(changes)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `
		UPDATE `+table+` AS o
		SET attempts = least(o.attempts, 2147483646) + 1,
		    last_error = f.error,
		    parked_at = CASE WHEN f.park THEN clock_timestamp() END,
		    not_before = CASE WHEN f.park THEN o.not_before ELSE clock_timestamp() + make_interval(secs => f.pause) END
		FROM jsonb_to_recordset($1::text::jsonb) AS f (id bigint, error text, park boolean, pause double precision)
		WHERE o.id = f.id`, string(list))
	return err
}

// errorText returns what of an error a text column can hold.
func errorText(err error) string {
	text := strings.ReplaceAll(err.Error(), "\x00", "\uFFFD")
	if len(text) > maxErrorText {
		text = text[:maxErrorText]
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}
