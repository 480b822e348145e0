package hostile

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	wm "github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/internal/delivery"
	"github.com/oncemill/oncemill/middleware"
)

// Patience is for what should happen soon, on a busy machine.
const Patience = 20 * time.Second

// Name is the consumer's.
const Name = "hostile"

// A Consumer handles what a topic has, with all of the Stack, and keeps the books of it.
type Consumer struct {
	DB         *sql.DB
	Subscriber message.Subscriber
	Topic      string
	DeadLetter string // topic
	Batch      int    // of the Inbox
	Key        middleware.KeyFunc

	mu         sync.Mutex
	duplicates map[string]bool // places
}

var errFail = errors.New("this cannot be handled")

// Run handles messages until consumed says that all are, and returns the books: of each
// message by the last part of its position in the broker.
func (c *Consumer) Run(t *testing.T, consumed func() bool, state ...func() string) Books {
	t.Helper()
	c.duplicates = make(map[string]bool)
	must(t, c.execute(`
		CREATE TABLE effects (place text, payload bytea);
		INSERT INTO oncemill.watermarks (consumer, purged_before) VALUES ('`+Name+`', '2000-01-01Z')`))
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: Patience}, watermill.NopLogger{})
	must(t, err)
	quiet := slog.New(slog.DiscardHandler)
	inbox := &oncemill.Inbox{DB: c.DB, Batch: c.Batch, Logger: quiet, Observer: &oncemill.Observer{Duplicate: c.duplicate}}
	stack := consumers.Stack{
		Once:      middleware.Once{Inbox: inbox, Consumer: Name, Key: c.Key, Fingerprint: middleware.PayloadFingerprint},
		MaxErrors: 2, DeadLetterTopic: c.DeadLetter,
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	must(t, stack.Apply(ctx, router))
	router.AddConsumerHandler(Name, c.Topic, c.Subscriber, c.handle)
	ended := make(chan error, 1)
	go func() { ended <- router.Run(ctx) }()
	Until(t, "all is consumed", consumed, state...)
	cancel()
	must(t, <-ended)
	return c.books(t)
}

func (c *Consumer) handle(msg *message.Message) error {
	switch string(msg.Payload) {
	case Panic:
		panic("the handler panics")
	case Fail:
		return errFail
	}
	tx, _ := oncemill.TxFromContext(msg.Context())
	_, err := tx.ExecContext(msg.Context(), `INSERT INTO effects (place, payload) VALUES ($1, $2)`, placeOf(msg.Context()), []byte(msg.Payload))
	return err
}

func (c *Consumer) duplicate(ctx context.Context, _, _ string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.duplicates[placeOf(ctx)] = true
}

func placeOf(ctx context.Context) string {
	info, _ := delivery.From(ctx)
	return lastPart(info.Position)
}

func lastPart(position string) string { return position[strings.LastIndexByte(position, ':')+1:] }

// books reads the ledgers. A message that was delivered again after it was handled is a
// duplicate of itself, and no other entry.
func (c *Consumer) books(t *testing.T) Books {
	t.Helper()
	books := make(Books)
	c.each(t, `SELECT place, '' FROM effects`, func(place, _ string) { books.Enter(place, Handled, "") })
	c.each(t, `SELECT metadata->>'`+consumers.DeadPosition+`', metadata->>'`+wm.ReasonForPoisonedKey+`' FROM oncemill.outbox WHERE topic = '`+c.DeadLetter+`'`,
		func(position, reason string) { books.Enter(lastPart(position), Dead, reason) })
	for place := range c.duplicates {
		if len(books[place]) == 0 {
			books.Enter(place, Duplicate, "")
		}
	}
	return books
}

// LettersByPlace returns, for each dead letter in the outbox, where its message was, by dedup id.
func (c *Consumer) LettersByPlace(t *testing.T) map[string]string {
	t.Helper()
	letters := make(map[string]string)
	c.each(t, `SELECT dedup_id::text, metadata->>'`+consumers.DeadPosition+`' FROM oncemill.outbox`, func(id, position string) { letters[id] = lastPart(position) })
	return letters
}

func (c *Consumer) each(t *testing.T, query string, found func(a, b string)) {
	eachRow(t, c.DB, query, found)
}

func eachRow(t *testing.T, db *sql.DB, query string, found func(a, b string)) {
	t.Helper()
	rows, err := db.Query(query)
	must(t, err)
	defer rows.Close()
	for rows.Next() {
		var a, b string
		must(t, rows.Scan(&a, &b))
		found(a, b)
	}
	must(t, rows.Err())
}

func (c *Consumer) execute(statements string) error {
	if _, err := c.DB.Exec(statements); err != nil {
		return fmt.Errorf("%s: %w", statements, err)
	}
	return nil
}

// Until waits for a state of which there is no signal.
func Until(t testing.TB, what string, holds func() bool, state ...func() string) {
	t.Helper()
	for end := time.Now().Add(Patience); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			for _, s := range state {
				t.Log(s())
			}
			t.Fatalf("not in time: %s", what)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
