package effects_test

import (
	"fmt"
	"slices"

	"github.com/oncemill/oncemill"
)

// A fate is what became of a message.
type fate string

const (
	settled     fate = "settled, and executed once"
	failed      fate = "failed, and never executed"
	inDoubt     fate = "in doubt, listed with its message, executed"
	doubtedNot  fate = "in doubt, listed with its message, not executed"
	unexplained fate = "unexplained"
)

// facts are all that is known of a message.
type facts struct {
	claims   int
	outcome  string // of its claim
	executed int    // in the provider's ledger
	receipts int    // rows of OnSettle
	sent     int    // messages that the handler returned
	parked   int
	listed   *oncemill.InDoubt
	events   map[oncemill.EventKind]int
	byHand   int     // settled events of attempts, not of resolvers
	tokens   []int64 // of attempts and resolvers, in the order of the events
}

// audit explains every message, and returns how many have which fate.
func (s *site) audit() map[fate]int {
	s.t.Helper()
	all := s.facts()
	tally := make(map[fate]int)
	for _, key := range s.sent {
		f := all[key]
		fate, why := s.explain(key, f)
		if tally[fate]++; fate == unexplained && tally[fate] <= 5 {
			s.t.Errorf("%s: %s: %+v\n%s", key, why, *f, s.history(key))
		}
	}
	if n := tally[unexplained]; n > 0 {
		s.t.Errorf("%s: %d of %d messages are unexplained", s.policy, n, len(s.sent))
	}
	if len(all) != len(s.sent) {
		s.t.Errorf("%s: %d messages, but claims, effects or receipts of %d", s.policy, len(s.sent), len(all))
	}
	return tally
}

// wants audits, and wants no other fates than these.
func (s *site) wants(want map[fate]int) {
	s.t.Helper()
	got := s.audit()
	for _, f := range []fate{settled, failed, inDoubt, doubtedNot} {
		if got[f] != want[f] {
			s.t.Errorf("%s: %d messages are %s, want %d", s.policy, got[f], f, want[f])
		}
	}
}

// explain says what became of a message, or why nobody can.
func (s *site) explain(key string, f *facts) (fate, string) {
	switch {
	case f.claims != 1:
		return unexplained, "it has no claim, and is not with the broker"
	case f.executed > 1:
		return unexplained, "the effect happened more than once"
	case f.events[oncemill.EventClaimed] != f.events[oncemill.EventReleased]+1:
		return unexplained, "its claims and releases do not add up"
	case !slices.IsSorted(f.tokens) || len(slices.Compact(slices.Clone(f.tokens))) != len(f.tokens):
		return unexplained, "its tokens do not grow"
	case f.receipts != f.events[oncemill.EventSettled] || f.sent != f.byHand:
		return unexplained, "what the handler writes when it settles is not there once"
	case f.outcome == "" && f.events[oncemill.EventSettled]+f.events[oncemill.EventFailed] > 0:
		return unexplained, "it was settled, and is not"
	}
	switch f.outcome {
	case "settled":
		if f.executed != 1 || f.events[oncemill.EventSettled] != 1 || f.parked != 0 || f.listed != nil {
			return unexplained, "it is settled, but not executed once, or parked, or listed as in doubt"
		}
		return settled, ""
	case "failed":
		if f.executed != 0 || f.events[oncemill.EventFailed] != 1 || f.parked != 0 || f.listed != nil {
			return unexplained, "it failed, but was executed, or parked, or is listed as in doubt"
		}
		return failed, ""
	}
	return s.explainDoubt(key, f)
}

func (s *site) explainDoubt(key string, f *facts) (fate, string) {
	if f.outcome != "" || f.listed == nil || f.listed.Message == nil || f.parked != 1 {
		return unexplained, "it is not settled, and not listed with its message"
	}
	m := f.listed.Message
	if m.Topic != s.orders || m.UUID != key || "order-"+string(m.Payload) != key || m.Metadata["desk"] != "tech" ||
		f.listed.ProviderKey() != oncemill.ProviderKey(consumer, key) {
		return unexplained, fmt.Sprintf("it is listed with another message: %+v", m)
	}
	if f.executed == 1 {
		return inDoubt, ""
	}
	return doubtedNot, ""
}

// facts collects what is known, by key.
func (s *site) facts() map[string]*facts {
	s.t.Helper()
	all := make(map[string]*facts)
	of := func(key string) *facts {
		if all[key] == nil {
			all[key] = &facts{events: make(map[oncemill.EventKind]int)}
		}
		return all[key]
	}
	byProvider := make(map[string]string)
	for _, key := range s.sent {
		of(key)
		byProvider[oncemill.ProviderKey(consumer, key)] = key
	}
	for key, n := range s.provider.executed() {
		of(byProvider[key]).executed = n
	}
	s.collect(`SELECT key, COALESCE(outcome, ''), 0 FROM oncemill.claims ORDER BY key`, func(key, outcome string, _ int64) {
		of(key).claims++
		of(key).outcome = outcome
	})
	s.collect(`SELECT key, '', 0 FROM receipts`, func(key, _ string, _ int64) { of(key).receipts++ })
	s.collect(`SELECT key, '', 0 FROM oncemill.parked`, func(key, _ string, _ int64) { of(key).parked++ })
	for number, n := range s.returned() {
		of("order-" + number).sent = n
	}
	s.collect(`SELECT key, kind || CASE WHEN note IS NULL THEN '' ELSE '!' END, COALESCE(token, 0) FROM oncemill.events ORDER BY id`, func(key, kind string, token int64) {
		of(key).see(kind, token)
	})
	for _, d := range s.doubts() {
		of(d.Key).listed = &d
	}
	return all
}

// see adds one event. The kind ends in ! if there is a note.
func (f *facts) see(kind string, token int64) {
	if kind == string(oncemill.EventSettled) {
		f.byHand++
	}
	k := oncemill.EventKind(kind)
	if kind[len(kind)-1] == '!' {
		k = k[:len(k)-1]
	}
	f.events[k]++
	if k == oncemill.EventClaimed || k == oncemill.EventTakenOver || k == oncemill.EventAsking {
		f.tokens = append(f.tokens, token)
	}
}

func (s *site) collect(query string, each func(key, text string, n int64)) {
	s.t.Helper()
	rows, err := s.db.Query(query)
	must(s.t, err)
	defer rows.Close()
	for rows.Next() {
		var key, text string
		var n int64
		must(s.t, rows.Scan(&key, &text, &n))
		each(key, text, n)
	}
	must(s.t, rows.Err())
}

// returned counts the messages that handlers returned, by order: those in the outbox and
// those that a relay has published.
func (s *site) returned() map[string]int {
	s.t.Helper()
	if s.relaying { // what it is publishing is in both for a moment
		eventually(s.t, "the outbox is empty", s.counts(`SELECT (count(*) = 0)::integer FROM oncemill.outbox`))
	}
	times := make(map[string]int)
	rows, err := s.db.Query(`SELECT convert_from(payload, 'UTF8') FROM oncemill.outbox WHERE topic = $1`, s.receipts)
	must(s.t, err)
	defer rows.Close()
	for rows.Next() {
		var number string
		must(s.t, rows.Scan(&number))
		times[number]++
	}
	must(s.t, rows.Err())
	stream, err := s.js.Stream(within(s.t), s.receipts)
	must(s.t, err)
	for sequence := range stream.CachedInfo().State.LastSeq {
		msg, err := stream.GetMsg(within(s.t), sequence+1)
		must(s.t, err)
		times[string(msg.Data)]++
	}
	return times
}

// doubts lists all that is in doubt, a page at a time.
func (s *site) doubts() (all []oncemill.InDoubt) {
	s.t.Helper()
	const page = 50
	var after oncemill.InDoubt
	for {
		some, err := s.inbox.InDoubt(within(s.t), consumer, after, page)
		must(s.t, err)
		all = append(all, some...)
		if len(some) < page {
			return all
		}
		after = some[len(some)-1]
	}
}
