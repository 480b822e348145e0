package ordered_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
)

// An anomaly is what the checker has found, about the messages with these UUIDs.
type anomaly struct {
	kind  kind
	what  string
	uuids []string
}

type kind string

const (
	overtaken   kind = "came after a later one of its key"
	lost        kind = "was committed and is not in the stream"
	conjured    kind = "was never committed"
	altered     kind = "is not as it was written"
	underTwoIDs kind = "came under two dedup ids"
	strangeID   kind = "came under a dedup id that it never had"
	again       kind = "came again"
	left        kind = "is left in the outbox"
	skipped     kind = "was not written by the producers"
)

// A delivery is a message in the stream.
type delivery struct {
	body
	uuid, id string
	at       time.Time
}

// A committed message is one that a producer has written.
type committed struct {
	body
	at time.Time
}

// A ledger is all that was committed, and all that has come of it.
type ledger struct {
	sent   map[string]committed // by UUID
	ids    map[string][]string  // dedup ids that a message has had, by UUID
	stream []delivery           // in its order
	left   []string             // UUIDs in the outbox
}

// check compares what is in the ledger. Where the broker forgets dedup ids a message may
// come again under the one that it has.
func (l *ledger) check(forgets bool) (found []anomaly) {
	found = append(found, l.checkWritten()...)
	first := make(map[string]int) // where a message came first, by UUID
	for i, d := range l.stream {
		sent, known := l.sent[d.uuid]
		before, seen := first[d.uuid]
		switch {
		case !known:
			found = append(found, anomaly{conjured, fmt.Sprint(d.body), []string{d.uuid}})
			continue
		case sent.body != d.body:
			found = append(found, anomaly{altered, fmt.Sprintf("%v became %v", sent.body, d.body), []string{d.uuid}})
		case !slices.Contains(l.ids[d.uuid], d.id):
			found = append(found, anomaly{strangeID, fmt.Sprintf("%v: %s", d.body, d.id), []string{d.uuid}})
		}
		if !seen {
			first[d.uuid] = i
			continue
		}
		switch {
		case l.stream[before].id != d.id:
			found = append(found, anomaly{underTwoIDs, fmt.Sprintf("%v: %s and %s", d.body, l.stream[before].id, d.id), []string{d.uuid}})
		case !forgets:
			found = append(found, anomaly{again, fmt.Sprintf("%v, after %d others", d.body, i-before-1), []string{d.uuid}})
		}
	}
	for uuid, sent := range l.sent {
		if _, ok := first[uuid]; !ok {
			found = append(found, anomaly{lost, fmt.Sprint(sent.body), []string{uuid}})
		}
	}
	for _, uuid := range l.left {
		found = append(found, anomaly{left, fmt.Sprint(l.sent[uuid].body), []string{uuid}})
	}
	return append(found, l.checkOrder(first)...)
}

// checkOrder wants the first deliveries of each key to be in the order of their numbers.
// It counts the messages that another one of their key has overtaken.
func (l *ledger) checkOrder(first map[string]int) (found []anomaly) {
	latest := make(map[string]delivery) // with the largest number of its key so far
	for i, d := range l.stream {
		if at, ok := first[d.uuid]; !ok || at != i || d.Key == "" {
			continue
		}
		if over, ok := latest[d.Key]; ok && over.Number > d.Number {
			found = append(found, anomaly{overtaken, fmt.Sprintf("%v came after %d", d.body, over.Number), []string{d.uuid, over.uuid}})
			continue
		}
		latest[d.Key] = d
	}
	return found
}

// checkWritten wants the producers to have done what the test says: for each key there
// are all numbers from 1 on.
func (l *ledger) checkWritten() (found []anomaly) {
	numbers := make(map[string][]int)
	for _, sent := range l.sent {
		if sent.Key != "" {
			numbers[sent.Key] = append(numbers[sent.Key], sent.Number)
		}
	}
	for key, all := range numbers {
		slices.Sort(all)
		for i, n := range all {
			if n != i+1 {
				found = append(found, anomaly{skipped, fmt.Sprintf("%s: %d", key, i+1), nil})
				break
			}
		}
	}
	return found
}

// repeated returns how many deliveries are not a message's first.
func (l *ledger) repeated() int {
	seen := make(map[string]bool)
	for _, d := range l.stream {
		seen[d.uuid] = true
	}
	return len(l.stream) - len(seen)
}

// read reads the tables and the stream.
func (s *site) read() *ledger {
	s.t.Helper()
	l := &ledger{sent: make(map[string]committed), ids: make(map[string][]string)}
	s.each(`SELECT uuid, key, number, dedup_id, at FROM sent`, func(scan func(...any) error) error {
		var uuid, id string
		var c committed
		err := scan(&uuid, &c.Key, &c.Number, &id, &c.at)
		l.sent[uuid], l.ids[uuid] = c, append(l.ids[uuid], id)
		return err
	})
	s.each(`SELECT uuid, dedup_id FROM freed`, func(scan func(...any) error) error {
		var uuid, id string
		err := scan(&uuid, &id)
		l.ids[uuid] = append(l.ids[uuid], id)
		return err
	})
	s.each(`SELECT uuid FROM oncemill.outbox`, func(scan func(...any) error) error {
		var uuid string
		err := scan(&uuid)
		l.left = append(l.left, uuid)
		return err
	})
	l.stream = readStream(s.t, s.js, s.topic)
	return l
}

func (s *site) each(query string, read func(scan func(...any) error) error) {
	s.t.Helper()
	rows, err := s.db.Query(query)
	must(s.t, err)
	defer rows.Close()
	for rows.Next() {
		must(s.t, read(rows.Scan))
	}
	must(s.t, rows.Err())
}

// readStream reads all that is in a stream.
func readStream(t *testing.T, js natsjs.JetStream, name string) (all []delivery) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	stream, err := js.Stream(ctx, name)
	must(t, err)
	info, err := stream.Info(ctx)
	must(t, err)
	consumer, err := js.OrderedConsumer(ctx, name, natsjs.OrderedConsumerConfig{})
	must(t, err)
	messages, err := consumer.Messages()
	must(t, err)
	defer messages.Stop()
	for uint64(len(all)) < info.State.Msgs {
		msg, err := messages.Next(natsjs.NextContext(ctx))
		must(t, err)
		meta, err := msg.Metadata()
		must(t, err)
		d := delivery{uuid: msg.Headers().Get(jetstream.UUIDHeader), at: meta.Timestamp}
		d.id = cmp.Or(msg.Headers().Get(nats.MsgIdHdr), msg.Headers().Get(idHeader))
		must(t, json.Unmarshal(msg.Data(), &d.body))
		all = append(all, d)
	}
	return all
}

// balance wants the checker to find nothing.
func (s *site) balance(l *ledger, forgets bool) {
	s.t.Helper()
	found := l.check(forgets)
	counts := make(map[kind]int)
	for _, a := range found {
		if counts[a.kind]++; counts[a.kind] <= 3 {
			s.t.Errorf("a message %s: %s\n%s", a.kind, a.what, s.history(a.uuids))
		}
	}
	for what, n := range counts {
		s.t.Errorf("in all, %d times: a message %s", n, what)
	}
}

// history returns all that was said about messages, in the order of time.
func (s *site) history(uuids []string) string {
	var all [][2]string // time, and the line
	for n, uuid := range uuids {
		for _, p := range s.relays {
			lines, _ := p.Said(uuid)
			for _, line := range lines {
				_, line := cut(line)
				at, line := cut(line)
				all = append(all, [2]string{at, fmt.Sprintf("  %s %s %s", at, []string{"this one", "the other"}[n], line)})
			}
		}
	}
	slices.SortFunc(all, func(a, b [2]string) int { return cmp.Compare(a[0], b[0]) })
	text := ""
	for _, line := range all {
		text += line[1] + "\n"
	}
	return text
}
