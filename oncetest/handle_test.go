package oncetest_test

import (
	"errors"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/oncetest"
	"github.com/oncemill/oncemill/outbox"
)

// A handler runs in a transaction that the test can look into, and of which nothing stays.
func TestHandleRunsAHandlerInATransactionThatIsRolledBack(t *testing.T) {
	t.Parallel()
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			db := database(t, driver)
			t.Run("test", func(t *testing.T) {
				for range 2 { // others are not there
					done := oncetest.Handle(t, db, pay, order())
					must(t, done.Err)
					var balance int
					must(t, done.Tx.QueryRow(`SELECT balance FROM accounts WHERE name = 'alice'`).Scan(&balance))
					if balance != 95 || len(done.Returned) != 1 || len(done.Published) != 1 {
						t.Errorf("balance %d, %d returned, %d published, want 95, 1, 1", balance, len(done.Returned), len(done.Published))
					}
					if sent := done.Published[0]; sent.Topic != "paid" || string(sent.Message.Payload) != "7" || sent.Message.UUID == "" {
						t.Errorf("published %+v", sent)
					}
					must(t, done.Tx.Rollback())
				}
			})
			if n := count(t, db, `SELECT balance FROM accounts WHERE name = 'alice'`); n != 100 {
				t.Errorf("the balance is %d after the test", n)
			}
		})
	}
}

// What a message was published with is read back: ordering key, metadata, when it is due.
func TestHandleReadsWhatWasPublished(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	db := database(t, "postgres")
	done := oncetest.Handle(t, db, func(msg *message.Message) ([]*message.Message, error) {
		first := message.NewMessageWithContext(msg.Context(), "first", []byte("\x00\xff"))
		first.Metadata.Set(outbox.OrderingKeyMetadata, "customer-7")
		first.Metadata.Set("odd", "\x00")
		later := message.NewMessageWithContext(msg.Context(), "later", nil)
		outbox.DeliverIn(later, time.Hour)
		return nil, publisher.Publish("topic", later, first)
	}, order())
	must(t, done.Err)
	if len(done.Published) != 2 {
		t.Fatalf("published %v", done.Published)
	}
	first, later := done.Published[0].Message, done.Published[1].Message
	if first.UUID != "first" || string(first.Payload) != "\x00\xff" || first.Metadata.Get(outbox.OrderingKeyMetadata) != "customer-7" || first.Metadata.Get("odd") != "\x00" {
		t.Errorf("read %+v", first)
	}
	if later.UUID != "later" || later.Payload != nil {
		t.Errorf("read %+v", later)
	}
}

// A handler that fails is no failure of the test, unless it returns nil.
func TestHandleTellsAnErrorFromOneThatWasSwallowed(t *testing.T) {
	t.Parallel()
	db := database(t, "postgres")
	fail := func(msg *message.Message) error {
		tx, _ := oncemill.TxFromContext(msg.Context())
		_, err := tx.ExecContext(msg.Context(), `INSERT INTO nothing VALUES (1)`)
		return err
	}
	if done := oncetest.Handle(t, db, oncetest.Consumer(fail), order()); done.Err == nil || done.Published != nil {
		t.Errorf("got %v and %v", done.Err, done.Published)
	}
	refused := errors.New("no funds")
	if done := oncetest.Handle(t, db, oncetest.Consumer(func(*message.Message) error { return refused }), order()); !errors.Is(done.Err, refused) {
		t.Errorf("got %v", done.Err)
	}
	r := &recorder{TB: t}
	over := make(chan struct{})
	go func() {
		defer close(over)
		oncetest.Handle(r, db, oncetest.Consumer(func(msg *message.Message) error {
			_ = fail(msg)
			return nil
		}), order())
	}()
	<-over
	wantReport(t, r.errors, "fatal: oncetest: the handler returned nil, but its transaction is aborted")
}
