package outbox_test

import (
	"database/sql"
	"errors"
	"testing"

	"github.com/oncemill/oncemill/outbox"
)

// Where all of some keys went to a wrong topic, one call drops them, and nothing else.
func TestDropWithBehindTakesWhatWaitsBehind(t *testing.T) {
	t.Parallel()
	eachDriver(t, func(t *testing.T, db *sql.DB, _ string) {
		exec(t, db, `
			INSERT INTO oncemill.outbox (id, topic, ordering_key) VALUES (1, 'wrong', 'k0'); -- before the first that has failed
			INSERT INTO oncemill.outbox (id, topic, ordering_key, attempts, not_before, last_error)
			SELECT i + 10, 'wrong', convert_to('k' || i % 3, 'UTF8'), 1, CASE WHEN i < 3 THEN now() + interval '1 hour' END, CASE WHEN i < 3 THEN 'no stream captures subject' END
			FROM generate_series(0, 2999) AS i;
			INSERT INTO oncemill.outbox (id, topic, ordering_key, parked_at) VALUES
			(5000, 'right', 'k0', NULL), (5001, 'right', 'k1', NULL), -- behind them, of another topic
			(5002, 'wrong', 'other', NULL), (5003, 'wrong', NULL, NULL), -- behind none of them
			(5004, 'wrong', 'k2', now())`) // has failed itself
		admin := &outbox.Admin{DB: db}
		wrong := outbox.Filter{State: outbox.Deferred, Topic: "wr*ng", Error: "no stream"}
		if n, err := admin.CountBehind(t.Context(), wrong); err != nil || n != 2997 {
			t.Errorf("%d wait behind, %v", n, err)
		}
		full := errors.New("disk full")
		if changed, err := admin.DropWithBehind(t.Context(), wrong, func(outbox.Entry) error { return full }); !errors.Is(err, full) || changed != (outbox.Changed{}) || rowCount(t, db) != 3006 {
			t.Errorf("changed %+v, %v", changed, err)
		}
		states := make(map[outbox.State]int)
		keep := func(e outbox.Entry) error {
			if states[e.State]++; e.State == outbox.Waiting && states[outbox.Deferred] > 0 {
				t.Errorf("row %d is dropped after the one that it waits for", e.ID)
			}
			return nil
		}
		changed, err := admin.DropWithBehind(t.Context(), wrong, keep)
		if err != nil || changed != (outbox.Changed{Rows: 3, Behind: 2997, GoOn: 2}) || states[outbox.Waiting] != 2997 || states[outbox.Deferred] != 3 {
			t.Errorf("changed %+v, handed over %v, %v", changed, states, err)
		}
		if left := value[string](t, db, `SELECT string_agg(id::text, ' ' ORDER BY id) FROM oncemill.outbox`); left != "1 5000 5001 5002 5003 5004" {
			t.Errorf("left are %s", left)
		}
		if _, err := admin.DropWithBehind(t.Context(), outbox.Filter{State: outbox.Scheduled}, nil); err == nil {
			t.Error("scheduled rows were taken")
		}
	})
}

// What somebody holds is left, and counted.
func TestDropWithBehindWaitsForNobody(t *testing.T) {
	t.Parallel()
	eachDriver(t, func(t *testing.T, db *sql.DB, _ string) {
		exec(t, db, `
			INSERT INTO oncemill.outbox (id, topic, ordering_key, parked_at) VALUES
			(1, 'wrong', 'a', now()), (2, 'wrong', 'a', NULL), (3, 'wrong', 'b', now()), (4, 'wrong', 'b', NULL)`)
		held, err := db.BeginTx(t.Context(), nil)
		must(t, err)
		defer held.Rollback()
		_, err = held.Exec(`SELECT FROM oncemill.outbox WHERE id = 1 FOR UPDATE`)
		must(t, err)
		changed, err := (&outbox.Admin{DB: db}).DropWithBehind(t.Context(), outbox.Filter{Topic: "wrong"}, nil)
		if err != nil || changed != (outbox.Changed{Rows: 1, Behind: 1, Skipped: 1}) {
			t.Errorf("changed %+v, %v", changed, err)
		}
		if left := value[string](t, db, `SELECT string_agg(id::text, ' ' ORDER BY id) FROM oncemill.outbox`); left != "1 2" {
			t.Errorf("left are %s", left)
		}
	})
}
