package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/oncemill/oncemill/examples/internal/crew"
)

// A part is a place in the cast, which one process after the other takes.
type part struct {
	role  string
	place int
}

func (p part) String() string { return fmt.Sprint(p.role, " ", p.place) }

// An actor is the process that has a part.
type actor struct {
	*crew.Child
	part
	life    int
	running bool
	frozen  bool
	stopped time.Time // when it was told to end
}

// A pending part is to be taken at a time.
type pending struct {
	part
	at   time.Time
	life int
}

// places is how many there are in each role.
var places = map[string]int{
	roleProvider: 1, roleGuard: 2, roleRelay: 3, roleSingle: 2, roleBatch: 2, roleGuarded: 2,
	roleDownstream: 2, roleClerk: 2, roleAgent: 2, roleProducer: 1,
}

const (
	startLimit = 90 * time.Second // until all run
	stopLimit  = 20 * time.Second
	tryAgain   = 300 * time.Millisecond
)

// hireAll starts everybody, and waits until they run.
func (r *run) hireAll(ctx context.Context) (err error) {
	r.base = setting{Seed: r.seed, Dir: r.dir, Broker: r.broker, Rate: r.rate, History: oldMessages, Late: r.profile.late}
	provider, err := r.hire(part{roleProvider, 1}, 1)
	if err != nil {
		return err
	}
	if r.base.Provider, err = r.crew.Await(ctx, provider.Child); err != nil {
		return err
	}
	for _, role := range []string{roleGuard, roleRelay, roleSingle, roleBatch, roleGuarded, roleDownstream, roleClerk, roleAgent, roleProducer} {
		for place := range places[role] {
			if _, err := r.hire(part{role, place + 1}, 1); err != nil {
				return err
			}
		}
	}
	return r.allRun(ctx)
}

// allRun waits until all parts are taken by processes that run.
func (r *run) allRun(ctx context.Context) error {
	limit := time.Now().Add(startLimit)
	return r.crew.Attend(ctx, func() (bool, error) {
		for p, a := range r.cast {
			if a.running && !a.Killed() || p.role == roleProvider {
				continue
			}
			if time.Now().After(limit) {
				return false, fmt.Errorf("%v does not run after %v", p, startLimit)
			}
			return false, nil
		}
		return true, nil
	})
}

// hire has a process take a part.
func (r *run) hire(p part, life int) (*actor, error) {
	s := r.base
	s.Role, s.Place, s.Life = p.role, p.place, life
	r.site.equip(&s)
	child, err := r.crew.Spawn(p.role, s)
	if err != nil {
		return nil, err
	}
	a := &actor{Child: child, part: p, life: life}
	r.cast[p] = a
	return a, nil
}

// heard deals with what a process says.
func (r *run) heard(from *crew.Child, line string) (taken bool, err error) {
	if line != running {
		return false, nil
	}
	for _, a := range r.cast {
		if a.Child == from {
			a.running = true
		}
	}
	return true, nil
}

// ended deals with the end of a process.
func (r *run) ended(child *crew.Child, err error) error {
	if a, told := r.gone[child]; told {
		delete(r.gone, child)
		if wrong := child.Misbehaved(err); wrong != nil {
			r.find("end", fmt.Sprintf("%v was told to end: %v", a.part, wrong))
		}
		return nil
	}
	for p, a := range r.cast {
		if a.Child != child || child.Killed() {
			continue
		}
		if a.running {
			r.find("end", fmt.Sprintf("%v has ended by itself: %v", p, err))
		}
		// One that is started while Postgres or the broker is away says so and ends, for
		// whoever looks after it to start another one.
		r.later(p, a.life+1, tryAgain)
	}
	return nil
}

func (r *run) later(p part, life int, after time.Duration) {
	r.due = append(r.due, pending{p, time.Now().Add(after), life})
}

// watch starts who is due, and looks for those who do not end.
func (r *run) watch() error {
	now := time.Now()
	for _, d := range r.due {
		if now.Before(d.at) {
			continue
		}
		if _, err := r.hire(d.part, d.life); err != nil {
			return err
		}
	}
	r.due = slices.DeleteFunc(r.due, func(d pending) bool { return !now.Before(d.at) })
	for child, a := range r.gone {
		if now.Sub(a.stopped) > stopLimit {
			r.find("end", fmt.Sprintf("%v was told to end %v ago, and has not", a.part, stopLimit))
			delete(r.gone, child)
			child.Kill()
		}
	}
	return r.screen.Err
}

// kill kills the process in a part; another one takes it after a while.
func (r *run) kill(p part, after time.Duration) bool {
	a := r.cast[p]
	if a == nil || a.Killed() || !a.running {
		return false
	}
	a.Kill()
	r.later(p, a.life+1, after)
	return true
}

// freeze stops the process in a part, until thaw is called.
func (r *run) freeze(p part) (thaw func()) {
	a := r.cast[p]
	if a == nil || a.Killed() || !a.running || a.frozen {
		return nil
	}
	a.frozen = true
	a.Signal(syscall.SIGSTOP)
	return func() {
		a.frozen = false
		a.Signal(syscall.SIGCONT)
	}
}

// deploy has another process take a part while the one that has it is told to end.
func (r *run) deploy(p part) (bool, error) {
	a := r.cast[p]
	if a == nil || a.Killed() || !a.running || a.frozen {
		return false, nil
	}
	if p.role == roleGuard { // they listen at one address
		r.tell(a)
		r.later(p, a.life+1, tryAgain)
		return true, nil
	}
	_, err := r.hire(p, a.life+1)
	r.tell(a)
	return true, err
}

// tell tells a process to end.
func (r *run) tell(a *actor) {
	a.stopped = time.Now()
	r.gone[a.Child] = a
	a.Stop()
}

// dismiss tells all in some roles to end, once all parts are taken, and waits until they
// have.
func (r *run) dismiss(ctx context.Context, roles ...string) error {
	if err := r.allRun(ctx); err != nil {
		return err
	}
	for _, p := range r.parts(roles...) {
		a := r.cast[p]
		delete(r.cast, p)
		r.tell(a)
	}
	return r.crew.Attend(ctx, func() (bool, error) { return len(r.gone) == 0, nil })
}

// parts are those of some roles, in an order that is always the same.
func (r *run) parts(roles ...string) (all []part) {
	for p := range r.cast {
		if slices.Contains(roles, p.role) {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b part) int {
		return slices.Index(roles, a.role)*100 + a.place - slices.Index(roles, b.role)*100 - b.place
	})
	return all
}

// freeAddress returns an address to listen at. Its port is none of those that systems give
// to connections: one of these could have it while a guard is away.
func freeAddress() (string, error) {
	var failed error
	for range 100 {
		address := fmt.Sprintf("127.0.0.1:%d", 20_000+rand.IntN(10_000))
		listener, err := net.Listen("tcp", address)
		if err == nil {
			return address, listener.Close()
		}
		failed = err
	}
	return "", failed
}
