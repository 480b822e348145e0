package oncetest

import (
	"context"
	"errors"
	"fmt"
)

// A place is where a fault happens.
type place int

const (
	nowhere        place = iota
	atStatement          // the process dies before the n-th statement
	afterStatement       // and after it
	failing              // Postgres refuses it
	atReturn             // the process dies when the handler has returned
	beforeClaim          // the COMMIT of Guard's claim does not arrive
	afterClaim           // it does, and its answer does not
	beforeCommit         // the COMMIT does not arrive
	afterCommit          // it does, and its answer does not
)

// An action is what becomes of a statement.
type action int

const (
	nothing action = iota
	breaks
	fails
)

type fault struct {
	at place
	n  int
}

// A step is one run of the handler, with one thing that goes wrong.
type step struct {
	name  string
	fault fault
	batch int
	own   bool                                    // the fault is in a statement of the handler
	run   func(ctx context.Context, r *run) error // instead of the usual one
}

// mostStatements is how many of a handler's statements are tried out.
const mostStatements = 24

// steps returns all of them, for a handler with these statements.
func (c *checker) steps(statements []string, own int) []step {
	all := []step{
		{name: "acked, and delivered again"},
		{name: "the process dies when the handler has returned", fault: fault{at: atReturn}},
		{name: "the process dies before its COMMIT", fault: fault{at: beforeCommit}},
		{name: "the process dies after its COMMIT, whose answer is lost", fault: fault{at: afterCommit}},
		{name: "delivered twice at the same time, to one process", run: twiceAtATime(1)},
		{name: "delivered twice at the same time, to two processes", run: twiceAtATime(2)},
		{name: "in a batch: acked, and delivered again", batch: batchSize},
		{name: "in a batch: the process dies before its COMMIT", fault: fault{at: beforeCommit}, batch: batchSize},
		{name: "in a batch: the process dies after its COMMIT, whose answer is lost", fault: fault{at: afterCommit}, batch: batchSize},
		{name: "in a batch, with the same message again", batch: batchSize, run: inABatch(nil)},
		{name: "in a batch in which another message fails, so that the handler runs again", batch: batchSize, run: inABatch(errors.New("oncetest: the other message fails, as this step of the check wants it"))},
	}
	for _, i := range spread(len(statements), mostStatements) {
		name := fmt.Sprintf("statement %d of the handler (%s)", i+1, short(statements[i]))
		if i >= own {
			name = fmt.Sprintf("the statement that writes what the handler has returned (%s)", short(statements[i]))
		}
		all = append(all,
			step{name: "the process dies before " + name, fault: fault{atStatement, i + 1}, own: i < own},
			step{name: "the process dies after " + name, fault: fault{afterStatement, i + 1}, own: i < own},
			step{name: "Postgres refuses " + name, fault: fault{failing, i + 1}, own: i < own},
		)
	}
	return all
}

// spread returns the numbers below n, or so many of them with the first and the last.
func spread(n, most int) []int {
	var all []int
	for i := range min(n, most) {
		if n <= most {
			all = append(all, i)
		} else {
			all = append(all, i*(n-1)/(most-1))
		}
	}
	return all
}

const batchSize = 8

// usual has the message delivered with a fault, and again until it is acked, by a process
// that starts after the one that died; and then once more, as if the ack had been lost.
func usual(ctx context.Context, r *run) error {
	p, err := r.start(ctx, r.step.fault)
	if err != nil {
		return err
	}
	a, err := p.deliver(r.c.Message)
	if err != nil {
		return p.stop(err)
	}
	r.swallowed = r.step.own && r.step.fault.at != afterStatement && a.handlerOK && a.err != nil
	if a.err != nil && r.step.fault.at != afterCommit {
		if r.remains, err = r.look(ctx); err != nil {
			return p.stop(err)
		}
	}
	if p.isDead() {
		if err := p.stop(nil); err != nil {
			return err
		}
		if p, err = r.start(ctx, fault{}); err != nil {
			return err
		}
	}
	return p.stop(r.finish(ctx, p, a))
}

// finish delivers until the message is acked, and once more.
func (r *run) finish(ctx context.Context, p *process, last *attempt) error {
	for range 3 {
		if last.err == nil {
			break
		}
		if err := r.endLeases(ctx); err != nil {
			return err
		}
		var err error
		if last, err = p.deliver(r.c.Message); err != nil {
			return err
		}
	}
	if r.stuck = last.err; r.stuck != nil {
		return nil
	}
	again, err := p.deliver(r.c.Message)
	if err == nil && again.err != nil {
		r.stuck = again.err
	}
	return err
}

// twiceAtATime has the message delivered a second time when the handler has returned, and
// nothing is committed.
func twiceAtATime(processes int) func(context.Context, *run) error {
	return func(ctx context.Context, r *run) (err error) {
		first, err := r.start(ctx, fault{})
		if err != nil {
			return err
		}
		defer func() { err = first.stop(err) }()
		second := first
		if processes == 2 {
			if second, err = r.start(ctx, fault{}); err != nil {
				return err
			}
			defer func() { err = second.stop(err) }()
		}
		a, b := newAttempt(), newAttempt()
		a.until, b.until = b.arrived, a.arrived
		for _, sent := range []struct {
			to *process
			a  *attempt
		}{{first, a}, {second, b}} {
			if err := sent.to.send(r.c.Message, sent.a); err != nil {
				return err
			}
		}
		if err := errors.Join(r.c.wait(a), r.c.wait(b)); err != nil {
			return err
		}
		if a.err == nil {
			a = b
		}
		return r.finish(ctx, second, a)
	}
}

// inABatch has the message handled in one transaction with another one, which fails with an
// error, or with itself. They come while another batch is under way.
func inABatch(failure error) func(context.Context, *run) error {
	return func(ctx context.Context, r *run) (err error) {
		p, err := r.start(ctx, fault{})
		if err != nil {
			return err
		}
		defer func() { err = p.stop(err) }()
		begun, open := make(chan struct{}), make(chan struct{})
		before := newAttempt()
		before.instead = func() error {
			close(begun)
			return r.c.within(open, "the messages of a batch have not arrived")
		}
		if err := p.send(r.other("before"), before); err != nil {
			return err
		}
		if err := r.c.within(begun, "a batch has not begun"); err != nil {
			return err
		}
		a, b := newAttempt(), newAttempt()
		fellow := r.c.Message
		if failure != nil {
			fellow = r.other("fellow")
			b.instead = func() error { return failure }
		}
		err = errors.Join(p.send(r.c.Message, a), r.c.within(a.arrived, "the message has not arrived"),
			p.send(fellow, b), r.c.within(b.arrived, "the other message has not arrived"))
		close(open)
		if err = errors.Join(err, r.c.wait(before), r.c.wait(a), r.c.wait(b)); err != nil {
			return err
		}
		return r.finish(ctx, p, a)
	}
}
