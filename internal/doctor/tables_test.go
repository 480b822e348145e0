package doctor_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/doctor"
)

func TestMessagesThatWaitAreNamed(t *testing.T) {
	t.Parallel()
	d := reader(t)
	d.exec(`INSERT INTO oncemill.outbox (topic) VALUES ('orders'), ('orders')`)
	d.look("").want(doctor.OK, "backlog", "2 messages wait", `"orders"`)
	d.exec(`UPDATE oncemill.outbox SET created_at = now() - interval '10 minutes'`)
	d.look("").want(doctor.Warn, "backlog", "2 messages wait", "the oldest for 10m", `"orders"`, "oncemill relay")
	d.look("").want(doctor.Warn, "relay", "no relay listens")

	d.exec(`UPDATE oncemill.outbox SET attempts = 3, not_before = now() + interval '1 minute', last_error = E'no stream\n' || chr(27) || 'x' WHERE id = 1`)
	r := d.look("")
	r.want(doctor.Warn, "deferred", "1 message is deferred", "the oldest is 1", "after 3 attempts: no stream x")
	r.want(doctor.Warn, "backlog", "1 message waits")

	d.exec(`UPDATE oncemill.outbox SET parked_at = now(), last_error = 'too large' WHERE id = 2`)
	r = d.look("")
	r.want(doctor.Warn, "parked rows", "1 message in the outbox is given up", "too large", "oncemill outbox list", "oncemill outbox retry --id 2", "oncemill outbox drop --id 2 --yes")
	r.want(doctor.OK, "backlog")
}

// No clock has written these times, and nothing can be subtracted from them.
func TestTimesThatCannotBeAreLookedAt(t *testing.T) {
	t.Parallel()
	for created, says := range map[string]string{"infinity": "1 message waits", "-infinity": "1 message waits", "294276-12-31": "1 message waits"} {
		d := reader(t)
		d.exec(`INSERT INTO oncemill.outbox (topic, created_at) VALUES ('orders', '` + created + `')`)
		level := doctor.OK
		if created == "-infinity" {
			level = doctor.Warn
		}
		d.look("").want(level, "backlog", says)
	}
}

func TestScheduledMessagesThatAreOverdueAreNamed(t *testing.T) {
	t.Parallel()
	d := reader(t)
	d.exec(`INSERT INTO oncemill.scheduled (topic, deliver_after) VALUES ('reminders', now() + interval '1 day')`)
	d.look("").want(doctor.OK, "scheduled", "1 message is scheduled")
	d.exec(`INSERT INTO oncemill.scheduled (topic, deliver_after) VALUES ('reminders', now() - interval '1 hour')`)
	r := d.look("")
	r.want(doctor.Warn, "scheduled", "1 scheduled message is overdue by more than 1m", "oncemill relay")
	if len(r.brief.Topics) != 1 || r.brief.Topics[0] != "reminders" {
		t.Errorf("topics for the broker are %v", r.brief.Topics)
	}
}

func TestTopicsForTheBrokerAreThoseOfTheOutbox(t *testing.T) {
	t.Parallel()
	d := reader(t)
	d.exec(`GRANT SELECT ON oncemill.published TO "` + d.role + `";
INSERT INTO oncemill.outbox (topic) VALUES ('b'), ('a'), ('b');
INSERT INTO oncemill.published (id, dedup_id, topic, uuid, metadata, created_at) VALUES (1, gen_random_uuid(), 'c', 'u', '{}', now())`)
	if topics := d.look("").brief.Topics; len(topics) != 3 || topics[0] != "a" || topics[1] != "b" || topics[2] != "c" {
		t.Errorf("got %v", topics)
	}
}

func TestEffectsInDoubtAreNamed(t *testing.T) {
	t.Parallel()
	d := reader(t)
	consumer := (&oncemill.Inbox{DB: d.admin}).Consumer("mails")
	claim, err := consumer.Claim(context.Background(), "k", oncemill.ClaimOptions{})
	must(t, err)
	r := d.look("")
	r.want(doctor.OK, "in doubt")
	must(t, claim.Doubt(context.Background(), "reply lost", &oncemill.ParkedMessage{Topic: "mails", UUID: "u"}))
	r = d.look("")
	r.want(doctor.Warn, "in doubt", "1 effect is in doubt", "oncemill claims --in-doubt")
	r.want(doctor.Warn, "parked messages", "1 message waits for a verdict", "acknowledged")
}

func TestMessagesThatKeepFailingAreNamed(t *testing.T) {
	t.Parallel()
	d := reader(t)
	consumer := (&oncemill.Inbox{DB: d.admin}).Consumer("billing")
	fail := func(key string, times int) {
		for range times {
			_, err := consumer.CountError(context.Background(), key, errors.New("no such customer"))
			must(t, err)
		}
	}
	fail("handled", 4)
	must(t, consumer.Once(context.Background(), "handled", func(context.Context, oncemill.Tx) error { return nil }))
	d.look("").want(doctor.OK, "failing")
	fail("a", 1)
	fail("b", 3)
	d.look("").want(doctor.Warn, "failing", "2 messages have ended with an error", `the worst is "b" of consumer "billing", after 3 errors: no such customer`, "oncemill claims list --failing")
}

func TestClaimsThatNobodyPurgesAreNamed(t *testing.T) {
	t.Parallel()
	d := reader(t)
	d.exec(`INSERT INTO oncemill.claims (consumer, key, settled_at) VALUES
('billing', 'a', now() - interval '3 days'), ('mails', 'b', now()), ('mails', 'c', now() - interval '6 days')`)
	r := d.look("")
	r.want(doctor.OK, "retention", "2 consumers")
	if r.brief.Kept != week || r.brief.Consumer != "" {
		t.Errorf("kept for %v, of %q", r.brief.Kept, r.brief.Consumer)
	}
	d.lookAs(doctor.Postgres{Retention: 4 * 24 * time.Hour}).want(doctor.Warn, "retention", `"mails" (6 days)`, "Inbox.Run")
	// The claims of effects may be kept for ever.
	d.exec(`INSERT INTO oncemill.claims (consumer, key, settled_at, outcome, token, attempts, claimed_at) VALUES ('guard', 'd', now() - interval '1 year', 'settled', 1, 1, now())`)
	d.look("").want(doctor.OK, "retention", "3 consumers")
	// One whose Inbox.Retention is shorter than it is said to be.
	d.exec(`INSERT INTO oncemill.watermarks VALUES ('billing', now() - interval '1 day'), ('mails', now() - interval '8 days')`)
	r = d.look("")
	r.want(doctor.Warn, "retention", `claims of "billing" (24h) were purged`, "ErrTooOld")
	if r.brief.Kept < 23*time.Hour || r.brief.Kept > 25*time.Hour || r.brief.Consumer != "billing" {
		t.Errorf("kept for %v, of %q", r.brief.Kept, r.brief.Consumer)
	}
}

func TestATableThatVacuumDoesNotGetToIsNamed(t *testing.T) {
	t.Parallel()
	d := reader(t)
	snapshot, err := d.admin.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	must(t, err)
	defer snapshot.Rollback() //nolint:errcheck // it only keeps autovacuum from being quicker
	_, err = snapshot.Exec(`SELECT 1`)
	must(t, err)
	conn, err := d.admin.Conn(t.Context())
	must(t, err)
	defer conn.Close()
	for _, statement := range []string{
		`INSERT INTO oncemill.outbox (topic) SELECT 'orders' FROM generate_series(1, 250000)`,
		`DELETE FROM oncemill.outbox`,
		`SELECT pg_stat_force_next_flush()`,
		`SELECT 1`,
	} {
		_, err := conn.ExecContext(t.Context(), statement)
		must(t, err)
	}
	d.look("").want(doctor.Warn, "vacuum", "outbox has 250000 dead rows beside 0 live ones", "VACUUM")
	d.exec(`ALTER TABLE oncemill.claims SET (autovacuum_enabled = false)`)
	d.look("").want(doctor.Warn, "vacuum", "autovacuum is disabled for claims")
}
