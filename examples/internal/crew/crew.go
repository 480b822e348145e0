// Package crew is what the demos are made of: a conductor, which is the program that
// the user has started, and its children, which are the same program in other roles.
// The conductor starts them, hears what they say, and kills some of them. None of them
// outlives it, however it ends.
package crew

import (
	"context"
	"fmt"
	"slices"
	"time"
)

const (
	// lookEvery is how often the conductor looks how far they are.
	lookEvery = 100 * time.Millisecond

	// patience is for how long nothing may change until everything is given up.
	patience = time.Minute

	// stopLimit is how long the processes may take to end when asked to.
	stopLimit = 15 * time.Second
)

// A Crew is the processes of one run. One goroutine has the say over it.
type Crew struct {
	// Heard is given the lines that children say. It returns false for one that is
	// an answer: see Ask. Required before Attend.
	Heard func(from *Child, line string) (taken bool, err error)

	// Ended is told of a child that has ended, and how. nil: what Child.Misbehaved says ends
	// what goes on.
	Ended func(child *Child, err error) error

	// Watch is called now and then. An error ends what goes on. Optional.
	Watch func() error

	dir      string
	all      []*Child // that were started
	events   chan event
	asked    chan func() error
	over     chan struct{}
	deadline time.Time // see patience
}

// New returns a crew whose processes log to files in dir.
func New(dir string) *Crew {
	return &Crew{dir: dir, events: make(chan event), asked: make(chan func() error), over: make(chan struct{})}
}

// Spawn starts a process in a role, and gives it a setting.
func (c *Crew) Spawn(role string, setting any) (*Child, error) {
	child, err := c.spawn(role, setting)
	if err == nil {
		c.all = append(c.all, child)
	}
	return child, err
}

// Attend deals with what the children say until done, which it asks now and then.
func (c *Crew) Attend(ctx context.Context, done func() (bool, error)) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	c.Changed()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-c.events:
			if err := c.handle(e); err != nil {
				return err
			}
		case do := <-c.asked:
			if err := do(); err != nil {
				return err
			}
		case now := <-tick.C:
			if ok, err := done(); ok || err != nil {
				return err
			}
			if c.Watch != nil {
				if err := c.Watch(); err != nil {
					return err
				}
			}
			if now.After(c.deadline) {
				return fmt.Errorf("nothing has changed for %v", patience)
			}
		}
	}
}

// Do has Attend, which runs in another goroutine, do something. Its error ends what goes
// on there.
func (c *Crew) Do(ctx context.Context, do func() error) error {
	done := make(chan struct{})
	select {
	case c.asked <- func() error { defer close(done); return do() }:
		<-done
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Changed tells that there is progress: Attend gives up where there is none for a
// minute.
func (c *Crew) Changed() { c.deadline = time.Now().Add(patience) }

// handle deals with one thing that a child said, or with its end.
func (c *Crew) handle(e event) error {
	switch {
	case e.ended && c.Ended != nil:
		return c.Ended(e.from, e.err)
	case e.ended:
		return e.from.Misbehaved(e.err)
	}
	taken, err := c.Heard(e.from, e.line)
	if !taken {
		e.from.Answer = e.line
	}
	return err
}

// Await returns what a child answers.
func (c *Crew) Await(ctx context.Context, child *Child) (answer string, err error) {
	err = c.Attend(ctx, func() (bool, error) { return child.Answer != "", nil })
	return child.Answer, err
}

// StopAll ends everybody but those in some roles, as an operator would, and wants them
// to go in peace.
func (c *Crew) StopAll(ctx context.Context, but ...string) error {
	var stopped []*Child
	for _, child := range c.all {
		if !slices.Contains(but, child.Role) {
			child.Stop()
			stopped = append(stopped, child)
		}
	}
	limit := time.Now().Add(stopLimit)
	return c.Attend(ctx, func() (bool, error) {
		for _, child := range stopped {
			if child.hasEnded() {
				continue
			}
			if time.Now().After(limit) {
				return false, fmt.Errorf("%s does not end", child.Role)
			}
			return false, nil
		}
		return true, nil
	})
}

// KillAll leaves nobody behind, whatever has happened. Those in some roles have files
// to remove, and are asked to end first. Call it once.
func (c *Crew) KillAll(tidy ...string) {
	close(c.over)
	for _, child := range c.all {
		if slices.Contains(tidy, child.Role) {
			child.Stop()
			select {
			case <-child.ended:
			case <-time.After(stopLimit):
			}
		}
		child.Kill()
		<-child.ended
	}
}
