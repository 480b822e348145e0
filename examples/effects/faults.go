package main

import (
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/examples/internal/crew"
)

// A moment is one in the life of a claim at which its worker is killed.
type moment string

const (
	beforeClaim   moment = "before the claim"
	afterClaim    moment = "after the claim, before the request"
	afterRequest  moment = "after the request was written"
	afterEffect   moment = "after the effect, before the reply"
	beforeSettle  moment = "after the reply, before settling"
	whileSettling moment = "in the transaction that settles"
	beforeAck     moment = "after settling, before the ack"
)

// A doom is when a worker is to be killed: when it comes to a moment for a certain
// time.
type doom struct {
	at   moment
	left atomic.Int64
}

func newDoom(s setting) *doom {
	d := &doom{at: s.Moment}
	d.left.Store(int64(s.Lifetime))
	return d
}

// reached is the end of the process, if this is the moment.
func (d *doom) reached(m moment) {
	if m == d.at && d.left.Add(-1) == 0 {
		crew.AwaitKill()
	}
}

// around is a middleware outside of all others.
func (d *doom) around(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		d.reached(beforeClaim)
		produced, err := h(msg)
		if err == nil {
			d.reached(beforeAck)
		}
		return produced, err
	}
}

// within is around the handler, inside of the claim.
func (d *doom) within(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		d.reached(afterClaim)
		produced, err := h(msg)
		if err == nil {
			d.reached(beforeSettle)
		}
		return produced, err
	}
}

// A fault is a kind of faults of a provider's, as it says it to the conductor.
type fault struct{ says, long string }

var (
	lostReply = fault{"lost reply", "replies lost, after it was done"}
	lostBoth  = fault{"lost request", "requests lost with their reply, nothing done"}
	cutBefore = fault{"cut before", "requests cut off before they were complete"}
	temporary = fault{"temporary error", "temporary errors"}
	refused   = fault{"refused", "refused for good"}
	slow      = fault{"slow", "slow answers"}
	paid500   = fault{"500 after", "errors 500, after it was done"}
	unpaid500 = fault{"500 before", "errors 500, nothing done"}
)

func (f fault) say() { crew.Say(f.says) }

// killAt is what a provider says of a worker that has come to its moment there.
const killAt = "kill "

func sayKill(place, life int) { crew.Say(fmt.Sprint(killAt, place, ".", life)) }

func parseKill(line string) (place, life int, ok bool) {
	rest, ok := strings.CutPrefix(line, killAt)
	p, l, _ := strings.Cut(rest, ".")
	place, err := strconv.Atoi(p)
	life, err2 := strconv.Atoi(l)
	return place, life, ok && err == nil && err2 == nil
}
