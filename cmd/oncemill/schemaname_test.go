package main_test

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/lib/pq"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/schema"
)

// longest and odd are names that Postgres allows a schema to have.
var (
	longest = `Say "it's" \ {schema} ` + strings.Repeat("é", 20) + "1" // 63 bytes
	odd     = `Say "it's" \ {schema} ` + strings.Repeat("é", 20) + "2"
)

// An installation is one of two in a database.
type installation struct {
	*doubtful
	name string
	db   *sql.DB
	url  string
}

func installations(t *testing.T) (a, b *installation) {
	t.Helper()
	if len(longest) != 63 || len(odd) != 63 {
		t.Fatalf("the names have %d and %d bytes", len(longest), len(odd))
	}
	url := testenv.EmptyPostgresURL(t)
	db := testenv.Open(t, url)
	install := func(name string) *installation {
		env := map[string]string{"ONCEMILL_DATABASE_URL": url, "ONCEMILL_SCHEMA": name}
		code, _, stderr := call(t, env, "claims", "list")
		if code != 1 || !strings.Contains(stderr, "has no Oncemill tables") {
			t.Errorf("without tables: exit code %d, %s", code, stderr)
		}
		if code, stdout, stderr := call(t, env, "migrate"); code != 0 || !strings.Contains(stdout, schema.Quote(name)) {
			t.Fatalf("migrate: exit code %d, %q, %s", code, stdout, stderr)
		}
		in := &oncemill.Inbox{DB: db, Schema: name}
		must(t, in.Check(t.Context()))
		return &installation{&doubtful{t, env, in.Consumer("payments")}, name, db, url}
	}
	return install(longest), install(odd)
}

func (i *installation) rows(table string) (n int) {
	i.t.Helper()
	must(i.t, i.db.QueryRow(`SELECT count(*) FROM `+schema.Quote(i.name)+`.`+table).Scan(&n))
	return n
}

// send handles a message that sends one to a topic, as middleware.Once does.
func (i *installation) send(in *oncemill.Inbox, key string) {
	i.t.Helper()
	p := &outbox.Publisher{Schema: i.name, Notify: i.db}
	must(i.t, in.Consumer("billing").Once(i.t.Context(), key, func(ctx context.Context, _ oncemill.Tx) error {
		msg := message.NewMessageWithContext(ctx, key, []byte(i.name))
		msg.Metadata.Set(outbox.OrderingKeyMetadata, "the same for both")
		return p.Publish("topic", msg)
	}))
}

// published receives what a relay of it publishes; gate, if there is one, holds that up.
type published struct {
	rows chan outbox.Row
	gate chan struct{}
}

func (p published) PublishBatch(ctx context.Context, rows []outbox.Row) []error {
	errs := make([]error, len(rows))
	for i, row := range rows {
		select {
		case p.rows <- row:
		case <-ctx.Done():
			errs[i] = ctx.Err()
		}
	}
	if p.gate != nil {
		<-p.gate
	}
	return errs
}

// relay runs until the test ends. It polls so seldom that only a wake-up can be heard.
func (i *installation) relay(gate chan struct{}) published {
	i.t.Helper()
	p := published{make(chan outbox.Row), gate}
	relay := &outbox.Relay{DB: i.db, Schema: i.name, Sink: p, ListenURL: i.url, PollInterval: 300 * time.Millisecond}
	ctx, stop := context.WithCancel(i.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- relay.Run(ctx) }()
	i.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			i.t.Error(err)
		}
	})
	return p
}

func (p published) next(t *testing.T) outbox.Row {
	t.Helper()
	select {
	case row := <-p.rows:
		return row
	case <-time.After(30 * time.Second):
		t.Fatal("nothing is published")
		return outbox.Row{}
	}
}

// Each has its claims, its outbox and its relays, also where a relay of the other has a row
// of the same ordering key on its way.
func TestTwoInstallationsShareADatabaseAndNothingElse(t *testing.T) {
	t.Parallel()
	a, b := installations(t)
	for _, batch := range []int{1, 8} {
		in := func(i *installation) *oncemill.Inbox {
			return &oncemill.Inbox{DB: i.db, Schema: i.name, Batch: batch}
		}
		key := "k" + strings.Repeat("'", batch)
		a.send(in(a), key)
		if n := b.rows("claims") + b.rows("outbox"); batch == 1 && n != 0 {
			t.Errorf("%d rows are in the other installation", n)
		}
		b.send(in(b), key)
		a.send(in(a), key) // a duplicate
	}
	if a.rows("claims") != 2 || a.rows("outbox") != 2 || b.rows("claims") != 2 || b.rows("outbox") != 2 {
		t.Errorf("claims and rows are %d, %d and %d, %d; want 2 of each", a.rows("claims"), a.rows("outbox"), b.rows("claims"), b.rows("outbox"))
	}
	gate := make(chan struct{})
	ofA, ofB := a.relay(gate), b.relay(nil)
	if row := ofA.next(t); string(row.Payload) != a.name {
		t.Errorf("its relay has published %q", row.Payload)
	}
	for range 2 {
		if row := ofB.next(t); string(row.Payload) != b.name {
			t.Errorf("the other's relay has published %q", row.Payload)
		}
	}
	close(gate)
	if row := ofA.next(t); string(row.Payload) != a.name {
		t.Errorf("its relay has published %q", row.Payload)
	}
}

// What wakes the relays of one says nothing to those of the other.
func TestTwoInstallationsHaveChannelsOfTheirOwn(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "LISTEN")
	a, b := installations(t)
	if outbox.Channel(a.name) == outbox.Channel(b.name) || len(outbox.Channel(a.name)) > 63 {
		t.Fatalf("the channels are %q and %q", outbox.Channel(a.name), outbox.Channel(b.name))
	}
	listener := pq.NewListener(a.url, time.Second, time.Second, nil)
	defer listener.Close()
	must(t, listener.Listen(outbox.Channel(a.name)))
	must(t, listener.Listen(outbox.Channel(b.name)))
	for _, i := range []*installation{b, a} {
		i.send(&oncemill.Inbox{DB: i.db, Schema: i.name}, "k")
		select {
		case heard := <-listener.Notify:
			if heard.Channel != outbox.Channel(i.name) {
				t.Errorf("heard %q, want %q", heard.Channel, outbox.Channel(i.name))
			}
		case <-time.After(30 * time.Second):
			t.Fatal("heard nothing")
		}
	}
}

func TestTheClaimsCommandsWorkInASchemaOfAnyName(t *testing.T) {
	t.Parallel()
	a, b := installations(t)
	a.doubt("doubtful")
	a.once("billing", "old", oncemill.ClaimOptions{})
	b.once("billing", "old", oncemill.ClaimOptions{})
	a.wantIn(a.run("claims", "--in-doubt"), "doubtful")
	a.wantIn(a.run("claims", "list"), "doubtful", "old")
	a.wantIn(a.run("claims", "show", "payments", "doubtful"), "in doubt", `--schema 'Say "it'\''s" \ {schema} é`)
	a.wantIn(a.run("claims", "resolve", "payments", "doubtful", "--not-happened", "--note", "asked"), "released; its message was parked, and is in the outbox now")
	a.wantIn(a.run("claims", "events", "payments", "doubtful"), "released")
	a.wantIn(a.run("claims", "--blocked"), "nothing was blocked")
	for _, i := range []*installation{a, b} {
		_, err := i.db.Exec(`UPDATE ` + schema.Quote(i.name) + `.claims SET settled_at = now() - interval '40 days'`)
		must(t, err)
	}
	a.wantIn(a.run("claims", "purge", "--consumer", "billing", "--older-than", "720h", "--yes"), "forgot 1 claim")
	a.wantIn(a.run("claims", "list"), "no claims match")
	b.wantIn(b.run("claims", "list"), "old")
	b.wantIn(b.run("claims", "--in-doubt"), "nothing is in doubt")
	if a.rows("outbox") != 1 || b.rows("outbox") != 0 {
		t.Errorf("%d and %d rows are in the outboxes", a.rows("outbox"), b.rows("outbox"))
	}
	err := b.consumer.Inbox().Consumer("billing").OnceWith(t.Context(), "unknown", oncemill.ClaimOptions{Origin: time.Now().AddDate(0, 0, -35)},
		func(context.Context, oncemill.Tx) error { return nil })
	if errors.Is(err, oncemill.ErrTooOld) {
		t.Errorf("the purge of one has moved the watermark of the other: %v", err)
	}
}

func TestTwoGuardsShareADatabaseAndNothingElse(t *testing.T) {
	t.Parallel()
	a, b := installations(t)
	first, second := startGuard(t, a.url, "--schema", a.name), startGuard(t, b.url, "--schema", b.name)
	for _, g := range []*guarding{first, second} {
		response, err := g.client.Post("http://"+g.addr+"/claim", "application/json", strings.NewReader(`{"request_id":"same","action":"charge"}`))
		must(t, err)
		text, err := io.ReadAll(response.Body)
		must(t, err)
		must(t, response.Body.Close())
		if !strings.Contains(string(text), `"PROCEED"`) {
			t.Errorf("the first claim of an id: %s", text)
		}
	}
	if a.rows("claims") != 1 || b.rows("claims") != 1 {
		t.Errorf("%d and %d claims, want 1 each", a.rows("claims"), b.rows("claims"))
	}
}
