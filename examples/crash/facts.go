package main

import (
	"context"
	"fmt"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/examples/internal/crew"
)

// facts are all ledgers, as they are when everybody has ended.
type facts struct {
	sent  map[string][]string // by topic: what the broker has acknowledged to the producer
	calls []string            // that agents have begun
	old   []string            // messages from long before

	effects     map[claimKey][]string // their children, of those of Once
	claims      map[claimKey]claim
	arrivals    map[string]map[string]int // by topic and UUID
	notes       []note                    // of the clerks
	settlements map[claimKey][]settlement
	doubts      map[claimKey]oncemill.InDoubt
	standing    []anomaly            // that only Postgres can tell
	ledger      map[claimKey][]entry // the provider's
	rows        []string             // UUIDs in the outbox
	order       []delivered          // the topic of the clerks' messages
	dead        []delivered          // dead letters
	deadlocks   int
}

// A claimKey is a key in the name of a consumer.
type claimKey struct{ consumer, key string }

type claim struct {
	outcome oncemill.Outcome // "": not settled
}

type note struct {
	key    string
	number int
	uuid   string
}

type settlement struct{ receipt, child string }

// guardConsumer is in whose name the guards claim what agents want.
const guardConsumer = "guard"

func (r *run) readFacts(ctx context.Context) (f *facts, err error) {
	f = &facts{
		effects: map[claimKey][]string{}, claims: map[claimKey]claim{}, arrivals: map[string]map[string]int{},
		settlements: map[claimKey][]settlement{}, doubts: map[claimKey]oncemill.InDoubt{}, ledger: map[claimKey][]entry{},
		deadlocks: r.site.deadlocks(),
	}
	for n := range oldMessages {
		f.old = append(f.old, oldUUID(n))
	}
	for what, read := range map[string]func(context.Context, *run) error{
		"files": f.readFiles, "topics": f.readTopics, "tables": f.readTables, "doubts": f.readDoubts,
	} {
		if err := read(ctx, r); err != nil {
			return nil, fmt.Errorf("read the %s: %w", what, err)
		}
	}
	return f, nil
}

func (f *facts) readFiles(_ context.Context, r *run) (err error) {
	if f.sent, err = readSent(r.dir); err != nil {
		return err
	}
	for place := range places[roleAgent] {
		numbers, err := readBegun(r.dir, place+1)
		if err != nil {
			return err
		}
		for _, n := range numbers {
			f.calls = append(f.calls, callID(place+1, n))
		}
	}
	entries, err := readLedger(r.dir)
	for _, e := range entries {
		k := claimKey{e.Kind, e.Order}
		if e.Kind == calls {
			k.consumer = guardConsumer
		}
		f.ledger[k] = append(f.ledger[k], e)
	}
	return err
}

func (f *facts) readTopics(ctx context.Context, r *run) (err error) {
	if f.order, err = r.site.broker.read(ctx, ordered); err == nil {
		f.dead, err = r.site.broker.read(ctx, deadLetters)
	}
	return err
}

func (f *facts) readDoubts(ctx context.Context, r *run) error {
	const page = 500
	inbox := &oncemill.Inbox{DB: r.site.db}
	var after oncemill.InDoubt
	for {
		listed, err := inbox.InDoubt(ctx, "", after, page)
		if err != nil {
			return err
		}
		for _, d := range listed {
			f.doubts[claimKey{d.Consumer, d.Key}] = d
		}
		if len(listed) < page {
			return nil
		}
		after = listed[len(listed)-1]
	}
}

func (f *facts) readTables(ctx context.Context, r *run) error {
	for query, read := range map[string]func(scan func(...any) error) error{
		`SELECT consumer, key, COALESCE(child, '') FROM effects`: func(scan func(...any) error) error {
			var k claimKey
			var child string
			err := scan(&k.consumer, &k.key, &child)
			f.effects[k] = append(f.effects[k], child)
			return err
		},
		`SELECT consumer, key, COALESCE(outcome, '') FROM oncemill.claims`: func(scan func(...any) error) error {
			var k claimKey
			var c claim
			err := scan(&k.consumer, &k.key, &c.outcome)
			f.claims[k] = c
			return err
		},
		`SELECT topic, uuid FROM arrivals`: func(scan func(...any) error) error {
			var topic, uuid string
			err := scan(&topic, &uuid)
			if f.arrivals[topic] == nil {
				f.arrivals[topic] = make(map[string]int)
			}
			f.arrivals[topic][uuid]++
			return err
		},
		`SELECT key, number, uuid FROM notes`: func(scan func(...any) error) error {
			var n note
			err := scan(&n.key, &n.number, &n.uuid)
			f.notes = append(f.notes, n)
			return err
		},
		`SELECT consumer, key, receipt, child FROM settlements`: func(scan func(...any) error) error {
			var k claimKey
			var s settlement
			err := scan(&k.consumer, &k.key, &s.receipt, &s.child)
			f.settlements[k] = append(f.settlements[k], s)
			return err
		},
		`SELECT uuid FROM oncemill.outbox`: func(scan func(...any) error) error {
			var uuid string
			err := scan(&uuid)
			f.rows = append(f.rows, uuid)
			return err
		},
	} {
		if err := r.each(ctx, query, read); err != nil {
			return fmt.Errorf("%s: %w", query, err)
		}
	}
	for _, c := range standing {
		err := r.each(ctx, c.query, func(scan func(...any) error) error {
			var what, key string
			err := scan(&what, &key)
			f.standing = append(f.standing, anomaly{class: c.class, kind: c.kind, what: what, keys: []string{key}})
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", c.query, err)
		}
	}
	return nil
}

// each calls do with each row of a query.
func (r *run) each(ctx context.Context, query string, do func(scan func(...any) error) error) error {
	return crew.Each(ctx, r.site.db, query, nil, do)
}
