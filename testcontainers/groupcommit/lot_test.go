package groupcommit_test

import (
	"fmt"
	"sort"
	"strconv"

	"github.com/oncemill/oncemill/testcontainers/internal/lot"
)

// keyOf returns a message's key. Keys are in another order than messages, so that two
// batches which take them as they come would take them in different orders.
func keyOf(seed uint64, number int) string {
	return fmt.Sprintf("%04x-%d", lot.Of(seed, "key", number).Uint32()&0xffff, number)
}

func payloadOf(number int) []byte { return []byte("payload " + strconv.Itoa(number)) }

// stormy tells whether a message is among those to which much happens: those in every
// other block. In the others batches can grow.
func stormy(number int) bool { return number/block%2 == 1 }

const block = 150

// A delivery is one of the times that a message is due.
type delivery struct {
	number int // of the message
	at     int // its place in the order of deliveries
}

// later is by how many messages a delivery follows one that should have ended by then.
const later = 400

// deliveries returns what one of two workers has to deliver, in order. Each message is
// delivered by one of them, and some more often: beside the first, by the other one, or
// later.
func deliveries(seed uint64, messages, worker int) (all []delivery) {
	for number := range messages {
		home := number%2 == worker
		var again bool
		draw := lot.Of(seed, "deliveries", number)
		switch n := draw.IntN(100); {
		case n < 60:
		case n < 70: // twice at a time
			again = home
		case n < 80: // by both
			again = !home
		case n < 90: // later
			if home {
				all = append(all, delivery{number, number + later})
			}
		default: // by both, and by the other one later
			again = !home
			if !home {
				all = append(all, delivery{number, number + later})
			}
		}
		if home {
			all = append(all, delivery{number, number})
		}
		if again {
			all = append(all, delivery{number, number + draw.IntN(8)})
		}
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].at < all[j].at })
	return all
}

// among is how far shuffled takes messages from their places.
const among = 512

// shuffled returns all messages, roughly in order, and in another order for each worker.
func shuffled(seed uint64, messages, worker int) (all []delivery) {
	draw := lot.Of(seed, "shuffled", worker)
	for number := range messages {
		all = append(all, delivery{number, number + draw.IntN(among)})
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].at < all[j].at })
	return all
}

// A fate is what becomes of one run of a handler.
type fate string

const (
	succeeds   fate = "succeeds"
	fails      fate = "fails"
	panics     fate = "panics"
	swallows   fate = "swallows an error of Postgres" // must be refused
	recovers   fate = "goes back to a savepoint"      // and succeeds
	dawdles    fate = "dawdles"                       // longer than the BatchTime, and succeeds
	idles      fate = "idles"                         // longer than the IdleTimeout
	hurries    fate = "hurries"                       // a timeout of its own ends its statement
	shrugs     fate = "hurries and shrugs"            // the same, and it returns nil
	nacks      fate = "nacks"                         // and returns nil, which must be refused
	leaves     fate = "leaves rows open"              // and succeeds
	abandons   fate = "leaves rows open, and ends their context"
	commits    fate = "commits"                            // which must be refused
	undoes     fate = "goes back to a savepoint of others" // the same
	sets       fate = "sets"                               // what others must not run under, and succeeds
	lingers    fate = "lingers"                            // leaves its transaction to the next, and succeeds
	failsLater fate = "publishes and fails"
)

// loner tells whether a message is of those whose handler does what reaches beyond its
// own turn. They have a consumer of their own, since such a consumer's messages are not
// handled in batches for long.
func loner(number int) bool { return number%20 == 13 }

// lastTrouble is the last run of a message in a process to which anything may happen.
const lastTrouble = 3

// fateOf draws the fate of a message's n-th run in a worker.
func fateOf(seed uint64, worker string, number, run int) fate {
	draw := lot.Of(seed, "fate", worker, number, run)
	odds := 400 // calm
	switch {
	case loner(number):
		odds = 2
	case stormy(number):
		odds = 8
	}
	if run > lastTrouble || draw.IntN(odds) > 0 {
		return succeeds
	}
	if loner(number) {
		return []fate{recovers, undoes, sets}[draw.IntN(3)]
	}
	fates := []fate{fails, fails, panics, swallows, dawdles, dawdles, hurries, shrugs, nacks, leaves, abandons, commits, lingers, lingers, failsLater}
	return fates[draw.IntN(len(fates))]
}

// A shape is what a run writes.
type shape struct {
	messages  int   // 1 or 2
	published int   // of them, by the handler itself
	hot       []int // counters that it raises, in this order
}

const counters = 10 // hot rows

// shapeOf draws what a run writes.
func shapeOf(seed uint64, worker string, number, run int) (s shape) {
	draw := lot.Of(seed, "shape", worker, number, run)
	s.messages, s.hot = 1+draw.IntN(2), []int{}
	if draw.IntN(4) == 0 {
		s.published = 1 + draw.IntN(s.messages)
	}
	odds := 60
	if stormy(number) {
		odds = 4
	}
	if draw.IntN(odds) == 0 {
		s.hot = draw.Perm(counters)[:2]
	}
	return s
}
