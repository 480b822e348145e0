package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/examples/internal/streams"
)

// What the loop sends in place of the product.
const (
	GroupClaimSQL  = groupClaimSQL
	GroupOutboxSQL = groupOutboxSQL
)

// Options are options.
type Options = options

// Turn, Repeats, Grown and Latency are flags.
func (o options) Turn() time.Duration    { return o.turn }
func (o options) Repeats() int           { return o.repeats }
func (o options) Grown() int             { return o.grown }
func (o options) Latency() time.Duration { return o.latency }

// Wanted are the contenders that take part.
func (o options) Wanted() (names []string) {
	for _, c := range all(o) {
		if o.wants(c) {
			names = append(names, c.name)
		}
	}
	return names
}

// Parse is parse.
func Parse(args ...string) (Options, error) { return parse(args, io.Discard) }

// TextArray is textArray.
func TextArray(elements []string) string { return textArray(elements) }

// NewKeys returns a function that makes keys.
func NewKeys(random bool) func() string { return newKeys(random).next }

// Payload is payload, and PayloadSQL and KeySQL are payloadSQL and keySQL.
func Payload(key string) []byte         { return payload(key) }
func PayloadSQL(key string) string      { return payloadSQL(key) }
func KeySQL(from string) string         { return keySQL(from) }
func AccountOf(key string) (int, error) { return accountOf(key) }

// Results are what contenders have reached, by name: all the same in each turn.
func Results(values map[string][]float64) (all []result) {
	for _, c := range allContenders() {
		if turns, measured := values[c.name]; measured {
			r := result{contender: c, choice: "some <settings>"}
			for _, value := range turns {
				r.samples = append(r.samples, sample{value: value, number: 1000, usage: usage{worker: time.Second / 100}})
			}
			all = append(all, r)
		}
	}
	return all
}

func allContenders() []contender { return all(options{batch: 1}) }

var aSetup = setup{machine: "2 cores & more", postgres: "Postgres <15>", flush: "1 ms"}

// Write is write, and Draw is draw.
func Write(out io.Writer, results []result) { write(out, aSetup, results) }
func Draw(results []result) string          { return draw(aSetup, results) }

// Names are those of the ratios and of the contenders that they need.
func Names() (ratioNames, contenderNames []string) {
	for _, r := range ratios {
		ratioNames = append(ratioNames, r.name)
		contenderNames = append(contenderNames, r.of, r.to)
	}
	return ratioNames, contenderNames
}

// A Check counts what turns of n messages have left in a database.
type Check func(ctx context.Context, db *sql.DB, n int) error

// Checks are those of the database.
var Checks = map[string]Check{
	"plain": func(ctx context.Context, db *sql.DB, n int) error {
		return (&database{db: db}).verify(ctx, effects(n)...)
	},
	"once": func(ctx context.Context, db *sql.DB, n int) error {
		return (&database{db: db}).verify(ctx, once(n, 0)...)
	},
	"hot": func(ctx context.Context, db *sql.DB, n int) error {
		return (&database{db: db}).verify(ctx, hotOnce(n, 0)...)
	},
	"purged": func(ctx context.Context, db *sql.DB, _ int) error {
		return (&database{db: db}).verify(ctx, count{"old claims", oldSQL, 0})
	},
	"relayed": func(ctx context.Context, db *sql.DB, _ int) error {
		return (&database{db: db}).verify(ctx, count{"rows", rowsSQL, 0})
	},
}

// SchemaSQL makes the tables that handlers write to.
const SchemaSQL = schemaSQL

// ReadStat is readStat.
func ReadStat(text string) (parent int, own, children time.Duration, err error) {
	st, err := readStat(text)
	return st.parent, st.own, st.children, err
}

// Sum is how a stage adds up the reports of its workers, written as JSON.
func Sum(reports ...string) (done int, took time.Duration, busy bool, err error) {
	s := &stage{reports: make(map[*crew.Child]report)}
	var workers []*crew.Child
	for _, line := range reports {
		w := new(crew.Child)
		r, err := readReport(line)
		if err != nil {
			return 0, 0, false, fmt.Errorf("%s: %w", line, err)
		}
		s.reports[w] = r
		workers = append(workers, w)
	}
	all := s.sum(workers)
	return all.Done, time.Duration(all.Last - all.First), all.Busy, nil
}

// A Broker is a stage that has nothing but one.
type Broker struct{ s *stage }

// Connect connects to a NATS server.
func Connect(address string) (b Broker, err error) {
	b.s = new(stage)
	if b.s.broker, err = streams.Connect(address); err != nil {
		return b, err
	}
	b.s.js, err = natsjs.New(b.s.broker.Conn)
	return b, err
}

// Close closes the connection.
func (b Broker) Close() { b.s.broker.Close() }

// Create makes a stream.
func (b Broker) Create(ctx context.Context, name string) error {
	return b.s.broker.Create(ctx, memory, name)
}

// Publish publishes a message with a UUID.
func (b Broker) Publish(ctx context.Context, topic, uuid string) error {
	_, err := b.s.js.PublishMsg(ctx, &nats.Msg{Subject: topic, Data: payload(uuid), Header: nats.Header{jetstream.UUIDHeader: {uuid}}})
	return err
}

// CheckStream is checkStream, for so many messages.
func (b Broker) CheckStream(ctx context.Context, name string, n int) error {
	return checkStream(ctx, b.s, &turn{messages: n, setting: setting{Out: name}})
}

// CheckAcked is wantAcked.
func (b Broker) CheckAcked(ctx context.Context, topic string) error {
	return b.s.wantAcked(ctx, &turn{contender: contender{role: "once"}, setting: setting{Topic: topic}})
}

// Subscriber is what the contenders have.
func (b Broker) Subscriber() *jetstream.Subscriber {
	return (&worker{nc: b.s.broker.Conn, setting: setting{InFlight: 8}}).subscriber()
}
