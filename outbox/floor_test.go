package outbox_test

import (
	"database/sql"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/outbox"
)

// While a transaction anywhere keeps vacuum from the rows that were deleted, a
// relay does not step over them again for every batch, nor for every wake-up.
func TestDeletedRowsAreNotSteppedOverAgain(t *testing.T) {
	t.Parallel()
	db, _ := database(t)
	old, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Rollback()
	if _, err := old.Exec(`SELECT FROM oncemill.outbox`); err != nil {
		t.Fatal(err)
	}
	const total, batch = 50_000, 250
	exec(t, db, `INSERT INTO oncemill.outbox (topic) SELECT 't' FROM generate_series(1, $1)`, total)
	relay := start(t, &outbox.Relay{DB: db, Sink: newRecorder(nil), Batch: batch, PollInterval: time.Hour})
	relay.settled(t, total)
	const woken = 200
	for range woken {
		publish(t, db, "t", 1)
		relay.Wake()
		relay.settled(t, 1)
	}
	if err := relay.stop(); err != nil {
		t.Fatal(err)
	}
	// Each row is found to be published, and to be deleted. With a search from the
	// bottom for each batch there were 5,000,000 steps, and 10,000,000 more for the
	// wake-ups.
	steps := 0
	poll(t, func() bool {
		before := steps
		steps = value[int](t, db, `SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'outbox_pkey'`)
		return steps >= 2*total && steps == before
	})
	if most := 2*total + 2_000_000; steps > most {
		t.Errorf("%d steps in the index for %d rows, want at most %d", steps, total, most)
	}
	t.Logf("%d steps in the index for %d rows", steps, total)
}

// Nor does that hide a row that is committed late.
func TestLateCommitBehindManyDeletedRows(t *testing.T) {
	t.Parallel()
	db, _ := database(t)
	late, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer late.Rollback()
	if err := outbox.InTx(late).Publish("late", message.NewMessage("", nil)); err != nil {
		t.Fatal(err)
	}
	const total = 50_000
	exec(t, db, `INSERT INTO oncemill.outbox (topic) SELECT 't' FROM generate_series(1, $1)`, total)
	relay := start(t, &outbox.Relay{DB: db, Sink: newRecorder(nil), PollInterval: time.Hour})
	relay.settled(t, total)
	publish(t, db, "t", 1)
	relay.Wake()
	relay.settled(t, 1)
	if err := late.Commit(); err != nil {
		t.Fatal(err)
	}
	relay.Wake()
	relay.settled(t, 1)
}
