package ordered_test

import (
	"fmt"
	"slices"
	"testing"
)

// sound returns a ledger in which all is well: of two keys, whose messages come in turn.
func sound() *ledger {
	l := &ledger{sent: make(map[string]committed), ids: make(map[string][]string)}
	for n := 1; n <= 4; n++ {
		for _, key := range []string{"a", "b", ""} {
			b := body{key, n}
			uuid := fmt.Sprint(key, n)
			l.sent[uuid] = committed{body: b}
			l.ids[uuid] = []string{"old " + uuid, "id " + uuid}
			l.stream = append(l.stream, delivery{body: b, uuid: uuid, id: "id " + uuid})
		}
	}
	return l
}

// deliver puts a message into the stream once more, at some place.
func (l *ledger) deliver(at int, uuid, id string) {
	l.stream = slices.Insert(l.stream, at, delivery{body: l.sent[uuid].body, uuid: uuid, id: id})
}

// amiss is what may be amiss, and what the checker says of it where the broker remembers
// dedup ids and where it forgets them.
var amiss = []struct {
	name                 string
	change               func(l *ledger)
	remembering, forgets []kind
}{
	{"nothing", func(*ledger) {}, nil, nil},

	{"two messages of a key change places",
		func(l *ledger) { l.stream[0], l.stream[3] = l.stream[3], l.stream[0] },
		[]kind{overtaken}, []kind{overtaken}},

	{"a message comes last",
		func(l *ledger) { l.stream = append(l.stream[1:], l.stream[0]) },
		[]kind{overtaken}, []kind{overtaken}},

	{"two messages of different keys change places",
		func(l *ledger) { l.stream[0], l.stream[1] = l.stream[1], l.stream[0] }, nil, nil},

	{"two messages without a key change places",
		func(l *ledger) { l.stream[2], l.stream[5] = l.stream[5], l.stream[2] }, nil, nil},

	{"a message comes again at once",
		func(l *ledger) { l.deliver(1, "a1", "id a1") }, []kind{again}, nil},

	{"a message comes again after all others",
		func(l *ledger) { l.deliver(12, "a1", "id a1") }, []kind{again}, nil},

	{"a message comes before its predecessor and again after it",
		func(l *ledger) { l.deliver(0, "a2", "id a2") }, []kind{again, overtaken}, []kind{overtaken}},

	{"a message comes again under the id that it had before",
		func(l *ledger) { l.deliver(12, "a1", "old a1") }, []kind{underTwoIDs}, []kind{underTwoIDs}},

	{"a message comes under an id that is not its own",
		func(l *ledger) { l.stream[0].id = "id b1" }, []kind{strangeID}, []kind{strangeID}},

	{"a message is missing",
		func(l *ledger) { l.stream = l.stream[1:] }, []kind{lost}, []kind{lost}},

	{"a message without a key is missing",
		func(l *ledger) { l.stream = slices.Delete(l.stream, 2, 3) }, []kind{lost}, []kind{lost}},

	{"a message was rolled back",
		func(l *ledger) { l.stream = append(l.stream, delivery{body{"a", 5}, "a5", "id a5", l.stream[0].at}) },
		[]kind{conjured}, []kind{conjured}},

	{"a message has another number",
		func(l *ledger) { l.stream[2].Number = 9 }, []kind{altered}, []kind{altered}},

	{"a message is still in the outbox",
		func(l *ledger) { l.left = []string{"a4"} }, []kind{left}, []kind{left}},

	{"a message was not written",
		func(l *ledger) { delete(l.sent, "a2"); l.stream = slices.Delete(l.stream, 3, 4) },
		[]kind{skipped}, []kind{skipped}},
}

// The checker finds what is amiss, and nothing else.
func TestTheCheckerFindsWhatIsAmiss(t *testing.T) {
	t.Parallel()
	for _, test := range amiss {
		for _, forgets := range []bool{false, true} {
			want := test.remembering
			if forgets {
				want = test.forgets
			}
			l := sound()
			test.change(l)
			var got []kind
			for _, a := range l.check(forgets) {
				got = append(got, a.kind)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s (a broker that forgets: %v): the checker finds %q, want %q", test.name, forgets, got, want)
			}
		}
	}
}
