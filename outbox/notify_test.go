package outbox_test

import (
	"context"
	"database/sql"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/lib/pq"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

// idle waits until the relay has found nothing to do and listens, so that only a
// wake-up can make it look again within the hour.
func idle(t *testing.T, db *sql.DB, relay *started) {
	t.Helper()
	poll(t, func() bool {
		return relay.Ready() == nil && value[int](t, db, `
			SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'`) == 1
	})
	// Having subscribed, the relay looks once more. A row that it finds then
	// shows that it is done.
	publish(t, db, "settle", 1)
	relay.Wake()
	relay.settled(t, 1)
}

func TestNotifyWakesTheRelay(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "LISTEN")
	for _, schema := range []string{"", "Other Schema", strings.Repeat("s", 63)} {
		db, url := database(t)
		if schema != "" {
			otherSchema(t, db, schema)
		}
		p := &outbox.Publisher{Schema: schema, Notify: db}
		sink := newRecorder(nil)
		relay := start(t, &outbox.Relay{DB: db, Schema: schema, Sink: sink, ListenURL: url, PollInterval: time.Hour})
		poll(t, func() bool { return relay.Ready() == nil })

		publishInTx := func(id string) {
			err := inTx(t, db, func(ctx context.Context) error {
				return p.Publish("t", message.NewMessageWithContext(ctx, id, nil))
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, id := range []string{"1", "2", "3"} {
			publishInTx(id)
			if row := sink.next(t); row.UUID != id {
				t.Errorf("schema %q: row %s, want %s", schema, row.UUID, id)
			}
		}
	}
}

// A rolled back transaction wakes nobody; InTx leaves it to the caller.
func TestWakeIsForInTx(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "LISTEN")
	db, url := database(t)
	p := &outbox.Publisher{Notify: db}
	sink := newRecorder(nil)
	relay := start(t, &outbox.Relay{DB: db, Sink: sink, ListenURL: url, PollInterval: time.Hour})
	idle(t, db, relay)
	sink.next(t)
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if err := p.InTx(tx).Publish("t", message.NewMessage("u", nil)); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	p.Wake()
	sink.next(t)
}

func TestListenerReconnects(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "LISTEN")
	db, url := database(t)
	sink := newRecorder(nil)
	relay := start(t, &outbox.Relay{DB: db, Sink: sink, ListenURL: url, PollInterval: time.Hour})
	idle(t, db, relay)
	sink.next(t)

	const listening = `datname = current_database() AND query LIKE 'LISTEN%'`
	exec(t, db, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE `+listening)
	// Nobody hears this one; the relay has to look by itself once it is back.
	publish(t, db, "missed", 1)
	if row := sink.next(t); row.Topic != "missed" {
		t.Errorf("topic is %s, want missed", row.Topic)
	}
	if err := (&outbox.Publisher{DB: db, Notify: db}).Publish("heard", message.NewMessage("", nil)); err != nil {
		t.Fatal(err)
	}
	if row := sink.next(t); row.Topic != "heard" {
		t.Errorf("topic is %s, want heard", row.Topic)
	}
}

// A NOTIFY makes commits wait for one another, so a Publisher sends few, however
// many transactions commit.
func TestNotifyIsCoalesced(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "LISTEN")
	db, url := database(t)
	db.SetMaxOpenConns(8)
	listener := pq.NewListener(url, time.Second, time.Second, nil)
	t.Cleanup(func() { listener.Close() })
	if err := listener.Listen(outbox.Channel("")); err != nil {
		t.Fatal(err)
	}
	var heard atomic.Int32
	signal := make(chan struct{}, 10_000)
	go func() {
		for range listener.Notify {
			heard.Add(1)
			signal <- struct{}{}
		}
	}()

	p := &outbox.Publisher{DB: db, Notify: db}
	const commits = 1000
	begun := time.Now()
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for range commits / 4 {
				if err := p.Publish("t", message.NewMessage("", nil)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	workers.Wait()
	receive(t, signal)
	poll(t, func() bool { // until no more come
		before := heard.Load()
		time.Sleep(100 * time.Millisecond)
		return heard.Load() == before
	})
	most := int32(time.Since(begun)/(10*time.Millisecond)) + 2
	if n := heard.Load(); n > most || n > commits/2 {
		t.Errorf("%d notifications for %d commits in %v, want at most %d", n, commits, time.Since(begun), most)
	}
	t.Logf("%d notifications for %d commits", heard.Load(), commits)

	// And the last commit is always followed by one.
	for len(signal) > 0 {
		<-signal
	}
	if err := p.Publish("t", message.NewMessage("", nil)); err != nil {
		t.Fatal(err)
	}
	receive(t, signal)
}

// Wake-ups are a hint: that they fail is logged once and hurts nobody.
func TestNotifyThatFails(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	logger, logged := hearLog()
	p := &outbox.Publisher{DB: db, Notify: testenv.Open(t, "postgres://user:secret@127.0.0.1:1/db?sslmode=disable"), Logger: logger}
	sink := newRecorder(nil)
	start(t, &outbox.Relay{DB: db, Sink: sink})
	for range 3 {
		if err := p.Publish("t", message.NewMessage("", nil)); err != nil {
			t.Fatal(err)
		}
		sink.next(t)
	}
	poll(t, func() bool { return strings.Contains(logged(), "cannot wake relays") })
	if strings.Count(logged(), "cannot wake relays") != 1 || strings.Contains(logged(), "secret") {
		t.Errorf("log:\n%s", logged())
	}
}

func TestChannel(t *testing.T) {
	t.Parallel()
	long, longer := strings.Repeat("x", 60), strings.Repeat("x", 61)
	seen := make(map[string]bool)
	for _, schema := range []string{"oncemill", "other", long, longer, "OTHER"} {
		channel := outbox.Channel(schema)
		if len(channel) > 63 || seen[channel] {
			t.Errorf("schema %q: channel %q", schema, channel)
		}
		seen[channel] = true
	}
	if outbox.Channel("") != "oncemill_outbox" || outbox.Channel("oncemill") != "oncemill_outbox" {
		t.Errorf("default channel is %q", outbox.Channel(""))
	}
}
