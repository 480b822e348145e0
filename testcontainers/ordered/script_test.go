package ordered_test

import (
	"fmt"
	"math/rand/v2"
	"syscall"

	"github.com/oncemill/oncemill/testcontainers/internal/actor"
	"github.com/oncemill/oncemill/testcontainers/internal/lot"
)

// A script is what happens to relays and servers while producers write. It is played
// by the test's own goroutine, one scene after another.
type script struct {
	*site
	draw    *rand.Rand
	faults  []fault // of relays that are still to come
	cast    []*player
	zombies []*player // frozen, and replaced

	brokerDies    []int // at which progress, in percent, NATS is killed
	brokerFreezes []int // and does not answer
	postgresDies  []int // and Postgres is killed
	done          map[fault]int
}

// A player is a relay with what is to become of it.
type player struct {
	*actor.Process
	fault fault // "": it lives on
	after int
	froze string // UUID of a message that it has had in its hands when it froze
}

const relays = 4 // at a time

// newScript draws a script.
func newScript(s *site) *script {
	c := &script{site: s, draw: lot.Of(s.seed, "script"), done: make(map[fault]int)}
	// Who freezes is among the first, since that takes some seconds.
	first := []fault{freezeWithinAPublish, dieAfterPublishing, killed, dieBeforePublishing}
	rest := []fault{
		freezeBeforePublishing, freezeWithinAPublish, dieAfterPublishing, dieAfterPublishing, dieAfterPublishing,
		dieBeforePublishing, dieBeforePublishing, killed, killed, killed, killed, stopped, stopped,
	}
	c.draw.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	c.faults = append(first, rest...)
	return c
}

// open starts the first relays.
func (c *script) open() {
	c.t.Helper()
	for range relays {
		c.cast = append(c.cast, c.enter())
	}
	for _, p := range c.cast {
		p.Await("running", 1)
	}
}

// enter starts the next relay.
func (c *script) enter() *player {
	c.t.Helper()
	p := &player{after: 5 + c.draw.IntN(25)}
	if len(c.faults) > 0 {
		p.fault, c.faults = c.faults[0], c.faults[1:]
	}
	p.Process = c.relay(p.fault, p.after)
	return p
}

// play lets happen what is due, until all has happened and the producers have finished.
func (c *script) play() {
	c.t.Helper()
	eventually(c.t, "the script is at its end", func() bool {
		for i, p := range c.cast {
			if c.exits(p) {
				c.done[p.fault]++
				c.cast[i] = c.enter()
			}
		}
		c.thaw()
		c.servers()
		return c.over()
	}, c.state)
}

// over tells whether all is written and all has happened, or nothing is left that it could
// happen to.
func (c *script) over() bool {
	if !c.finished() || len(c.zombies) > 0 {
		return false
	}
	return c.happened() || c.idle()
}

// idle tells whether all is written and published.
func (s *site) idle() bool {
	return s.finished() && s.count(`SELECT count(*) FROM oncemill.outbox`) == 0
}

func (c *script) happened() bool {
	for _, p := range c.cast {
		if p.fault != "" {
			return false
		}
	}
	return len(c.faults)+len(c.brokerDies)+len(c.brokerFreezes)+len(c.postgresDies) == 0
}

func (c *script) state() string {
	text := fmt.Sprintf("%d %%, to come: %v, broker %v and %v, Postgres %v; frozen: %d; on stage:", c.progress(), c.faults, c.brokerDies, c.brokerFreezes, c.postgresDies, len(c.zombies))
	for _, p := range c.cast {
		text += fmt.Sprintf(" %q", p.fault)
	}
	return text
}

// exits tells whether a relay is to be replaced, after what was to happen to it has.
func (c *script) exits(p *player) bool {
	c.t.Helper()
	switch p.fault {
	case dieBeforePublishing, dieAfterPublishing:
		if p.Times("dying") > 0 {
			p.AwaitDeath()
			return true
		}
	case freezeBeforePublishing, freezeWithinAPublish:
		if lines, _ := p.Said("freezing"); len(lines) > 0 {
			_, p.froze = cut(lines[0])
			c.zombies = append(c.zombies, p)
			return true
		}
	case killed:
		if p.Times("batch") > p.after {
			p.Kill()
			return true
		}
	case stopped:
		if p.Times("batch") > p.after {
			p.Stop()
			return true
		}
	}
	return false
}

// thaw lets relays go on that froze, after others have published what they had in
// their hands. Once they have published it as well, they are killed.
func (c *script) thaw() {
	c.t.Helper()
	var still []*player
	for _, p := range c.zombies {
		switch {
		case p.froze == "": // it was thawed
			if p.Times("stale") > 0 && (p.Times("batch") > p.after+5 || c.finished()) {
				p.Kill()
				continue
			}
		case c.count(`SELECT count(*) FROM oncemill.outbox WHERE uuid = $1`, p.froze) == 0:
			p.froze = ""
			p.Signal(syscall.SIGCONT)
		}
		still = append(still, p)
	}
	c.zombies = still
}

// servers kills and freezes the servers that are due, and has the broker back once relays
// have missed it.
func (c *script) servers() {
	c.t.Helper()
	if c.isDue(&c.brokerDies) {
		must(c.t, c.broker.Kill())
		c.missed()
		must(c.t, c.broker.Start(c.t.Context()))
	}
	if c.isDue(&c.brokerFreezes) { // what is on its way meanwhile arrives afterwards
		must(c.t, c.broker.Freeze())
		c.missed()
		must(c.t, c.broker.Thaw())
	}
	if c.isDue(&c.postgresDies) {
		must(c.t, c.server.Kill())
		must(c.t, c.server.Start(c.t.Context()))
	}
}

// missed waits until two relays have missed the broker, or one has twice.
func (c *script) missed() {
	c.t.Helper()
	before := c.times("missing")
	eventually(c.t, "relays miss the broker", func() bool { return c.times("missing") >= before+2 || c.idle() }, c.state)
}

// isDue takes the first of the times away when it has come.
func (c *script) isDue(times *[]int) bool {
	if len(*times) == 0 || c.progress() < (*times)[0] {
		return false
	}
	*times = (*times)[1:]
	return true
}

// close stops the relays that are left. Those to which something is still to happen may
// be about to die of it: they end with the test.
func (c *script) close() {
	c.t.Helper()
	for _, p := range c.cast {
		if p.fault == "" {
			p.Stop()
		}
	}
}
