package outbox_test

import (
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

func TestRelayChecksItsFields(t *testing.T) {
	t.Parallel()
	db := new(sql.DB) // is not used before the fields are in order
	sink := newRecorder(nil)
	for name, relay := range map[string]*outbox.Relay{
		"Relay.DB":             {Sink: sink},
		"Relay.Sink":           {DB: db},
		"Relay.Batch":          {DB: db, Sink: sink, Batch: -1},
		"Relay.MaxAttempts":    {DB: db, Sink: sink, MaxAttempts: -1},
		"Relay.PollInterval":   {DB: db, Sink: sink, PollInterval: -time.Second},
		"Relay.PublishTimeout": {DB: db, Sink: sink, PublishTimeout: -1},
		"Relay.MinBackoff":     {DB: db, Sink: sink, MinBackoff: time.Hour},
		"Relay.MaxBackoff":     {DB: db, Sink: sink, MaxBackoff: -1},
		"Relay.DrainTimeout":   {DB: db, Sink: sink, DrainTimeout: -1},
		"Relay.Keep":           {DB: db, Sink: sink, Keep: -1},
		"Relay.ListenURL":      {DB: db, Sink: sink, ListenURL: "postgres://user:sec ret@host:port/db"},
	} {
		for how, err := range map[string]error{"Check": relay.Check(t.Context()), "Run": relay.Run(t.Context())} {
			if err == nil || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "sec") {
				t.Errorf("%s with a bad %s: error is %v", how, name, err)
			}
		}
		if relay.Ready() == nil {
			t.Errorf("bad %s: ready", name)
		}
	}
}

func TestRelayRefusesToStartOnWrongDatabases(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "settings of the connection string")
	empty := testenv.Open(t, testenv.EmptyPostgresURL(t))
	tooNew := testenv.DB(t)
	exec(t, tooNew, `INSERT INTO oncemill.schema_version (version) VALUES (99)`)
	readOnly, readOnlyURL := database(t)
	exec(t, readOnly, `ALTER DATABASE `+value[string](t, readOnly, `SELECT current_database()`)+` SET default_transaction_read_only = on`)
	unreachable := testenv.Open(t, "postgres://user:secret@127.0.0.1:1/db?sslmode=disable")

	for name, test := range map[string]struct {
		db    *sql.DB
		is    error
		names string
	}{
		"no schema":   {empty, outbox.ErrSchema, "oncemill migrate"},
		"too new":     {tooNew, outbox.ErrSchema, "has version 99"},
		"read-only":   {testenv.Open(t, readOnlyURL), outbox.ErrReadOnly, "default_transaction_read_only"},
		"unreachable": {unreachable, outbox.ErrUnreachable, "127.0.0.1:1"},
	} {
		err := (&outbox.Relay{DB: test.db, Sink: newRecorder(nil)}).Run(t.Context())
		if !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.names) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: error is %v, want one that names %s", name, err, test.names)
		}
	}
}

// relayWith returns a relay whose role has some grants, in which {role} is its name.
func relayWith(t *testing.T, grants string, sink outbox.Sink) (relay *outbox.Relay, admin *sql.DB, role string) {
	t.Helper()
	testenv.NeedsSession(t, "options of the connection string")
	db, url := database(t)
	role = testenv.Role(t, db)
	exec(t, db, strings.ReplaceAll(`GRANT USAGE ON SCHEMA oncemill TO {role}; GRANT SELECT ON oncemill.schema_version TO {role};`+grants, "{role}", role))
	return &outbox.Relay{DB: testenv.OpenAs(t, url, role), Sink: sink}, db, role
}

func TestRelayRefusesToStartWithoutRights(t *testing.T) {
	t.Parallel()
	for grants, want := range map[string]string{
		``: `GRANT SELECT, UPDATE, DELETE ON oncemill.outbox TO "{role}"`,
		`GRANT SELECT ON ALL TABLES IN SCHEMA oncemill TO {role}`: `GRANT UPDATE, DELETE ON oncemill.outbox TO "{role}"`,
	} {
		relay, _, role := relayWith(t, grants, newRecorder(nil))
		err := relay.Run(t.Context())
		if want := strings.ReplaceAll(want, "{role}", role); err == nil || !strings.Contains(err.Error(), "("+want+")") {
			t.Errorf("error is %v, want %s", err, want)
		}
	}
}

// A relay that is to keep what it publishes cannot publish without the rights to.
func TestRelayRefusesToStartWithoutRightsToKeep(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	relay, _, role := relayWith(t, `GRANT SELECT, UPDATE, DELETE ON oncemill.outbox TO {role}; GRANT SELECT, INSERT ON oncemill.published TO {role}`, newRecorder(nil))
	relay.Keep = time.Hour
	err := relay.Run(t.Context())
	if want := `Keep is set: role "` + role + `" may not keep rows (GRANT UPDATE (id), DELETE ON oncemill.published TO "` + role + `")`; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error is %v, want %s", err, want)
	}
}

// Privileges on the columns that a relay uses are enough.
func TestARelayWithGrantsOnColumnsStarts(t *testing.T) {
	t.Parallel()
	columns := `id, dedup_id, topic, uuid, metadata, ordering_key, payload, created_at, attempts, not_before, parked_at, last_error`
	sink := newRecorder(nil)
	relay, db, _ := relayWith(t, `GRANT SELECT (`+columns+`), UPDATE (attempts, not_before, parked_at, last_error, dedup_id), DELETE ON oncemill.outbox TO {role}`, sink)
	start(t, relay)
	publish(t, db, "t", 1)
	sink.next(t)
}
