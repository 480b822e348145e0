package ordered_test

import (
	"fmt"
	"math"

	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers/internal/lot"
)

// keyName returns the ordering key of a number.
func keyName(n int) string { return fmt.Sprintf("key-%03d", n) }

// shares divides messages among keys, by Zipf's law: the first of 200 keys has about
// the twentieth part, and the last one the five hundredth. If they are even, all have
// the same.
func shares(messages, keys int, even bool) []int {
	exponent := 0.6
	if even {
		exponent = 0
	}
	var sum float64
	for k := range keys {
		sum += math.Pow(float64(k+1), -exponent)
	}
	all := make([]int, keys)
	left := messages
	for k := range all {
		all[k] = int(float64(messages) * math.Pow(float64(k+1), -exponent) / sum)
		left -= all[k]
	}
	for k := range left {
		all[k%keys]++
	}
	return all
}

// A fate is what becomes of an attempt to publish a message.
type fate string

const (
	succeeds fate = "is to be published"
	fails    fate = "fails before it is published"
	isLost   fate = "fails after it was published" // its ack is lost
	refused  fate = "is refused"
)

// lastTrouble is the last attempt at a message that may fail.
const lastTrouble = 3

// fateOf draws the fate of an attempt. All relays draw the same, so that a message that
// is refused under some dedup id is never published under it: an operator who gives it
// another one makes no second message of it.
func fateOf(seed uint64, row outbox.Row) fate {
	draw := lot.Of(seed, "fate", row.DedupID, row.Attempts).IntN(1000)
	switch {
	case row.Attempts > lastTrouble:
		return succeeds
	case draw < 15:
		return fails
	case draw < 30:
		return isLost
	case draw < 35 && row.Attempts == 0:
		return refused
	}
	return succeeds
}
