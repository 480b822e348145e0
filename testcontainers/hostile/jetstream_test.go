package hostile_test

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/hostile"
)

// Whatever a foreign producer sends is handled once, is a dead letter or is refused when it
// is published, and the good message behind it is handled. Then all letters are sent, or
// parked with the reason.
func TestWhateverComesFromJetStreamIsAccountedFor(t *testing.T) {
	t.Parallel()
	for _, batch := range []int{1, 64} {
		t.Run(fmt.Sprintf("batches of %d", batch), func(t *testing.T) {
			t.Parallel()
			fromJetStream(t, hostile.Messages, batch, nil)
		})
	}
}

// The same for payloads in which the key is, or should be.
func TestWhateverShouldBeJSONIsAccountedFor(t *testing.T) {
	t.Parallel()
	fromJetStream(t, hostile.JSON, 64, middleware.ByJSON("id"))
}

func fromJetStream(t *testing.T, messages []hostile.Message, batch int, key middleware.KeyFunc) {
	t.Helper()
	b := newBench(t)
	database := testcontainers.Postgres(t)
	database.DB.SetMaxOpenConns(20)
	database.DB.SetMaxIdleConns(20)
	c := &hostile.Consumer{
		DB: database.DB, Topic: b.prefix + ".in.>", DeadLetter: b.prefix + ".dead", Batch: batch, Key: key,
		Subscriber: &jetstream.Subscriber{
			Conn: b.nc, Group: "g", MaxInFlight: 16,
			NakDelay: func(uint64) time.Duration { return 10 * time.Millisecond }, Logger: slog.New(slog.DiscardHandler),
		},
	}
	refused, places := make(hostile.Books), make(map[string]string)
	send := func(subject string, m *hostile.Message) {
		place, err := b.store(b.prefix+".in."+subject, m)
		if err != nil {
			refused.Enter(m.Name, hostile.Refused, err.Error())
			return
		}
		places[m.Name] = place
	}
	for i, m := range messages {
		if m.JetStream == (hostile.Fate{}) {
			continue
		}
		subject := "x"
		if m.Subject != "" {
			subject = m.Subject
		}
		send(subject, &m)
		good := hostile.GoodMessage(i)
		send("good", &good)
	}
	state := ""
	books := c.Run(t, func() bool {
		consumer, err := b.stream.Consumer(within(t), "g~"+b.prefix+"~in~=3E")
		if err != nil {
			return false
		}
		info := consumer.CachedInfo()
		state = fmt.Sprintf("%+v", info)
		return info.NumPending == 0 && info.NumAckPending == 0 && info.Delivered.Consumer > 0
	}, func() string { return state })
	d := &hostile.Dispatch{DB: database.DB, Sink: &jetstream.Sink{Conn: b.nc}}
	letters := d.Letters(t, c)
	d.Run(t)
	b.arrived(c.DeadLetter, func(dedupID string) { d.Arrived(t, dedupID) })
	for i, m := range messages {
		if m.JetStream == (hostile.Fate{}) {
			continue
		}
		for _, one := range []hostile.Message{m, hostile.GoodMessage(i)} {
			refused[one.Name] = append(refused[one.Name], books[places[one.Name]]...)
			delete(books, places[one.Name])
			refused.Balance(t, one.Name, one.JetStream)
		}
		if m.JetStream.Ledger == hostile.Dead {
			d.Books.Balance(t, places[m.Name], m.LetterOf())
			delete(letters, places[m.Name])
		}
	}
	if len(books) > 0 || len(letters) > 0 {
		t.Errorf("nobody has sent %v or what the letters %v are of", books, letters)
	}
}
