package middleware_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/outbox"
)

// What the members of a batch publish goes out with their effects, in one INSERT, also if
// one of them fails and all run again.
func TestWhatABatchPublishesIsThereOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.inbox.Batch = 100
	_, err := f.db.Exec(`CREATE TABLE statements (n int);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO statements VALUES (1); RETURN NULL; END $$;
CREATE TRIGGER note AFTER INSERT ON oncemill.outbox FOR EACH STATEMENT EXECUTE FUNCTION note()`)
	must(t, err)
	publisher := &outbox.Publisher{}
	var begun sync.Once
	wait, gate := make(chan struct{}), make(chan struct{})
	var waiting atomic.Int64
	h := f.once().Middleware(func(msg *message.Message) ([]*message.Message, error) {
		if msg.UUID == "gate" {
			begun.Do(func() { close(wait) })
			<-gate
			return nil, nil
		}
		msg.Metadata.Set("changed", msg.Metadata.Get("changed")+"x")
		msg.Payload[0]++
		out := message.NewMessageWithContext(msg.Context(), "out "+msg.UUID, msg.Payload)
		out.Metadata = msg.Metadata
		if err := publisher.Publish("topic", out, out.Copy()); err == nil || !strings.Contains(err.Error(), "transaction") {
			return nil, fmt.Errorf("a copy has no transaction, and yet: %v", err)
		}
		if err := publisher.Publish("topic", out); err != nil {
			return nil, err
		}
		msg.Payload[0] = '!' // it was copied
		if msg.UUID == "5" {
			return nil, errors.New("no")
		}
		return nil, effect(msg)
	})
	var wg sync.WaitGroup
	run := func(uuid string) {
		wg.Go(func() {
			waiting.Add(1)
			if _, err := h(newMessage(t, uuid)); (err != nil) != (uuid == "5") {
				t.Errorf("%s: %v", uuid, err)
			}
		})
	}
	run("gate")
	<-wait
	for i := range 10 {
		run(fmt.Sprint(i))
	}
	for waiting.Load() < 11 {
		time.Sleep(time.Millisecond)
	}
	close(gate)
	wg.Wait()
	f.wantEffects(9)
	f.want(`SELECT count(*) FROM oncemill.outbox`, 9)
	f.want(`SELECT count(*) FROM oncemill.outbox WHERE uuid <> 'out 5' AND metadata->>'changed' = 'x' AND get_byte(payload, 0) = ascii('{') + 1`, 9)
	var statements int
	must(t, f.db.QueryRow(`SELECT count(*) FROM statements`).Scan(&statements))
	if statements > 5 {
		t.Errorf("%d statements for 9 messages", statements)
	}
}

// Whoever keeps a transaction cannot publish into that of another message's turn.
func TestATurnThatIsOverCannotPublish(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.inbox.Batch = 100
	publisher := &outbox.Publisher{}
	var kept *message.Message
	h := f.once().Middleware(func(msg *message.Message) ([]*message.Message, error) {
		kept = message.NewMessageWithContext(msg.Context(), "late", nil)
		return nil, effect(msg)
	})
	_, err := h(newMessage(t, "u"))
	must(t, err)
	want(t, publisher.Publish("topic", kept), oncemill.ErrTxEnded)
	f.want(`SELECT count(*) FROM oncemill.outbox`, 0)
}
