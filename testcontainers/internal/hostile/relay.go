package hostile

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/oncemill/oncemill/outbox"
)

// A Dispatch is rows on their way from the outbox to a broker.
type Dispatch struct {
	DB    *sql.DB
	Sink  outbox.Sink
	Topic string // of which the broker takes everything

	names map[string]string // by dedup id
	Books Books
}

// Publish gives a message to an outbox.Publisher.
func (d *Dispatch) Publish(t *testing.T, name string, m *Message) {
	t.Helper()
	publisher := &outbox.Publisher{DB: d.DB}
	d.insert(t, name, func() error { return publisher.Publish(d.Topic, m.Watermill()) })
}

// Insert inserts a row.
func (d *Dispatch) Insert(t *testing.T, r Row) {
	t.Helper()
	topic, columns, values := "$2::text", "", ""
	if r.Topic != "" {
		topic = "CASE WHEN $2::text <> '' THEN " + r.Topic + " END"
	}
	if r.Columns != "" {
		columns, values = ", "+r.Columns, ", "+r.Values
	}
	d.insert(t, r.Name, func() error {
		_, err := d.DB.Exec(`INSERT INTO oncemill.outbox (uuid, topic`+columns+`) VALUES ($1, `+topic+values+`)`, r.Name, d.Topic)
		return err
	})
}

// Good inserts a row with which there is nothing wrong.
func (d *Dispatch) Good(t *testing.T, n int) {
	t.Helper()
	d.Insert(t, Row{Name: Good(n)})
}

// Good is the name of the good one after the n-th bad one.
func Good(n int) string { return fmt.Sprint("good ", n) }

// insert notes under which dedup id something is in the outbox, or among what is scheduled.
func (d *Dispatch) insert(t *testing.T, name string, insert func() error) {
	t.Helper()
	if d.names == nil {
		d.names, d.Books = make(map[string]string), make(Books)
	}
	if err := insert(); err != nil {
		d.Books.Enter(name, Refused, err.Error())
	}
	n := 0
	eachRow(t, d.DB, `SELECT dedup_id::text, 'outbox' FROM oncemill.outbox UNION ALL SELECT dedup_id::text, 'scheduled' FROM oncemill.scheduled`, func(id, table string) {
		if _, known := d.names[id]; !known {
			d.names[id] = name
			n++
		}
	})
	if want := 1 - len(d.Books[name]); n != want {
		t.Errorf("%s: %d rows were stored, want %d", name, n, want)
	}
}

// Run relays all that is there, and enters what is in the outbox then.
func (d *Dispatch) Run(t *testing.T) {
	t.Helper()
	relay := &outbox.Relay{
		DB: d.DB, Sink: d.Sink, PollInterval: 20 * time.Millisecond, MinBackoff: time.Hour, MaxBackoff: time.Hour,
		Logger: slog.New(slog.DiscardHandler),
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- relay.Run(ctx) }()
	Until(t, "all is relayed that can be", func() bool {
		var left int
		must(t, d.DB.QueryRow(`SELECT count(*) FROM oncemill.outbox WHERE parked_at IS NULL AND not_before IS NULL`).Scan(&left))
		return left == 0
	}, func() string {
		text := fmt.Sprintf("the relay says %v; there are still", relay.Ready())
		eachRow(t, d.DB, `SELECT dedup_id::text, '' FROM oncemill.outbox WHERE parked_at IS NULL AND not_before IS NULL`, func(id, _ string) { text += ", " + d.names[id] })
		return text
	})
	must(t, relay.Check(ctx))
	cancel()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	eachRow(t, d.DB, `
		SELECT dedup_id::text || CASE WHEN parked_at IS NOT NULL THEN 'p' WHEN last_error IS NULL THEN 'w' ELSE 'd' END, coalesce(last_error, '') FROM oncemill.outbox
		UNION ALL SELECT dedup_id::text || 'w', '' FROM oncemill.scheduled`, func(id, reason string) {
		d.Books.Enter(d.names[id[:len(id)-1]], map[byte]Ledger{'p': Parked, 'w': Waiting, 'd': Deferred}[id[len(id)-1]], reason)
	})
}

// Arrived enters that the broker has a message with a dedup id.
func (d *Dispatch) Arrived(t *testing.T, dedupID string) {
	t.Helper()
	name, ok := d.names[dedupID]
	if !ok {
		t.Errorf("a message of nobody is in the broker: %q", dedupID)
	}
	d.Books.Enter(name, Sent, "")
}

// Letters are the dead letters of a consumer, by where their messages were.
func (d *Dispatch) Letters(t *testing.T, c *Consumer) (places map[string]bool) {
	t.Helper()
	d.names, d.Books = c.LettersByPlace(t), make(Books)
	places = make(map[string]bool)
	for _, place := range d.names {
		places[place] = true
	}
	return places
}

// InsertAll inserts all Rows, and a good one after each.
func (d *Dispatch) InsertAll(t *testing.T) {
	t.Helper()
	for i, r := range Rows {
		d.Insert(t, r)
		d.Good(t, i)
	}
}

// Balance wants all Rows to be accounted for, and the good ones sent.
func (d *Dispatch) Balance(t *testing.T, fate func(Row) Fate) {
	t.Helper()
	for i, r := range Rows {
		d.Books.Balance(t, r.Name, fate(r))
		d.Books.Balance(t, Good(i), sent)
	}
}

// PublishAll publishes all Messages that can be sent that way, and a good row after each.
func (d *Dispatch) PublishAll(t *testing.T, fate func(*Message) Fate) {
	t.Helper()
	for i, m := range Messages {
		if fate(&m) != (Fate{}) {
			d.Publish(t, m.Name, &m)
			d.Good(t, i)
		}
	}
}

// BalancePublished wants them to be accounted for, and the good ones sent.
func (d *Dispatch) BalancePublished(t *testing.T, fate func(*Message) Fate) {
	t.Helper()
	for i, m := range Messages {
		if want := fate(&m); want != (Fate{}) {
			d.Books.Balance(t, m.Name, want)
			d.Books.Balance(t, Good(i), sent)
		}
	}
}
