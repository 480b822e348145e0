package oncetest

import (
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/schema"
)

// A Case is a handler, a message for it, and the database that both are tried out on.
type Case struct {
	// DB is a Postgres database with Oncemill's tables and those of the handler, and with
	// what the handler expects to find in them. Required. Nothing else may use it
	// meanwhile. Check compares all tables, and brings them back to what they were after
	// each run; sequences it does not. For that it needs to be a user that may set
	// session_replication_role, such as a superuser, if there are triggers or foreign keys.
	DB *sql.DB

	// Handler is the handler. Required. For one that returns no messages, see Consumer.
	Handler message.HandlerFunc

	// Message is what the handler gets, again and again. Required.
	Message *message.Message

	// Once is the middleware as the router has it: its Key and Fingerprint are used, and
	// the Schema of its Inbox and its Outbox. The zero value is fine.
	Once middleware.Once

	// Guard is the middleware instead of Once, for a handler with an effect outside of
	// Postgres: all of it is used but Consumer, Probe and what its Inbox has but Schema and
	// Lease. Set Outside too. nil: Once.
	Guard *middleware.Guard

	// Topic is where the messages go that the handler returns. "" means "returned".
	Topic string

	// Outside counts effects outside of Postgres, such as the mails that a fake server has
	// received: how many more there are after a run is compared. See also Broker. nil: there
	// are none.
	Outside func() int

	// Timeout is how long one delivery may take. 0 means 30 seconds.
	Timeout time.Duration

	// Reset is called before each run, for what is outside of Postgres to be as it was
	// before the first, such as a fake provider that knows idempotency keys. Optional.
	Reset func()
}

// Consumer makes a message.HandlerFunc of a handler that returns no messages, which is what
// Watermill's AddConsumerHandler takes.
func Consumer(handler message.NoPublishHandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) { return nil, handler(msg) }
}

// leastConns is how many connections a check has open at a time, at most.
const leastConns = 8

type checker struct {
	Case
	schema   string
	prefix   string // of the runs' consumers
	runs     int
	tables   []table
	json     []map[string]string // of each table's rows
	base     state
	quiet    bool
	changing changing
	want     effects
	report   report
}

// Check runs a handler again and again behind middleware.Once, with one fault in each run:
// the process dies before and after each of its statements, before and after its COMMIT,
// Postgres refuses a statement, the message is delivered twice, one after the other and at
// the same time, alone and in batches. With Case.Guard, the process dies before and after
// the COMMITs of the claim and of what settles it, and leases are over at once. Each time the message is delivered again until it is
// acked, and once more. Then all tables have to be as after a run in which nothing went
// wrong: each effect once, and each message in the outbox once.
//
// What is not is an error of t that says at which step, what was found, and what to do
// about it. Check takes about a second.
func Check(t testing.TB, c Case) {
	t.Helper()
	k := &checker{Case: c, changing: changing{}, prefix: "oncetest-" + strings.ToLower(rand.Text()[:10]) + "-"}
	ctx := context.WithoutCancel(t.Context())
	err := k.validate()
	if err == nil {
		err = k.prepare(ctx)
	}
	if err == nil {
		err = k.check(ctx, t.Logf)
		if left := k.cleanUp(ctx); err == nil {
			err = left
		}
	}
	for _, f := range k.report.findings {
		t.Error(f.String())
	}
	if err != nil {
		t.Fatalf("oncetest: %v", err)
	}
}

func (c *checker) validate() error {
	switch {
	case c.DB == nil:
		return errors.New("Case.DB is nil: set it to a *sql.DB of a Postgres with Oncemill's tables")
	case c.Handler == nil:
		return errors.New("Case.Handler is nil: set it to the handler; one that returns no messages through oncetest.Consumer")
	case c.Message == nil:
		return errors.New("Case.Message is nil: set it to a message for the handler")
	}
	if c.Timeout < 0 {
		return fmt.Errorf("Case.Timeout is %v: must not be negative", c.Timeout)
	}
	if c.Guard != nil {
		if c.Once.Key != nil || c.Once.Fingerprint != nil {
			return errors.New("Case.Once and Case.Guard are both set: keep the one that the handler's router has")
		}
		if c.Outside == nil {
			return errors.New("Case.Outside is nil: set it to what counts the effects that the handler has under Case.Guard")
		}
		if err := c.guard(c.DB, c.prefix).Check(); err != nil {
			return fmt.Errorf("Case.Guard: %w", err)
		}
	}
	if n := c.DB.Stats().MaxOpenConnections; n > 0 && n < leastConns {
		return fmt.Errorf("Case.DB has room for %d connections: call SetMaxOpenConns with %d or more, and some for what the handler does beside its transaction", n, leastConns)
	}
	return nil
}

// prepare finds out what there is to compare.
func (c *checker) prepare(ctx context.Context) (err error) {
	c.schema, c.Timeout = c.schemaName(), cmp.Or(c.Timeout, defaultTimeout)
	if c.Topic == "" {
		c.Topic = "returned"
	}
	if err := (&oncemill.Inbox{DB: c.DB, Schema: c.schema}).Check(ctx); err != nil {
		return fmt.Errorf("Case.DB: %w", err)
	}
	if c.quiet, err = maySetRole(ctx, c.DB); err != nil {
		return fmt.Errorf("Case.DB: %w", err)
	}
	if c.tables, err = tables(ctx, c.DB, c.schema); err != nil {
		return fmt.Errorf("Case.DB: %w", err)
	}
	c.json = make([]map[string]string, len(c.tables))
	for i := range c.json {
		c.json[i] = map[string]string{}
	}
	c.base, err = c.read(ctx)
	return err
}

// schemaName returns where Oncemill's tables are.
func (c *checker) schemaName() string {
	inbox, out := c.Once.Inbox, c.Once.Outbox
	if c.Guard != nil {
		inbox, out = c.Guard.Inbox, c.Guard.Outbox
	}
	switch {
	case inbox != nil && inbox.Schema != "":
		return inbox.Schema
	case out != nil && out.Schema != "":
		return out.Schema
	}
	return schema.Default
}

// A run is one step, and what it has shown.
type run struct {
	c        *checker
	step     step
	consumer string
	outside  int // what Outside had counted before

	remains   effects // after an attempt that was not acked
	swallowed bool    // the handler has returned nil in spite of an error
	stuck     error   // for which it is nacked again and again
}

func (c *checker) newRun(s step) *run {
	c.runs++
	if c.Reset != nil {
		c.Reset()
	}
	return &run{c: c, step: s, consumer: fmt.Sprint(c.prefix, c.runs), outside: c.outside()}
}

func (c *checker) outside() int {
	if c.Outside == nil {
		return 0
	}
	return c.Outside()
}

// start starts a process, one that is as good as new.
func (r *run) start(ctx context.Context, f fault) (*process, error) {
	return r.c.start(ctx, r.consumer, f, r.step.batch)
}

// other is a message with which the handler has nothing to do.
func (r *run) other(name string) *message.Message {
	msg := r.c.Message.Copy()
	msg.UUID = r.consumer + "-" + name
	return msg
}

// look tells what the run has left up to now.
func (r *run) look(ctx context.Context) (effects, error) {
	now, err := r.c.read(ctx)
	if err != nil {
		return effects{}, err
	}
	e := effects{outside: r.c.outside() - r.outside}
	e.tables, err = r.c.changes(r.c.base, now)
	return e, err
}

// check makes all runs.
func (c *checker) check(ctx context.Context, logf func(string, ...any)) error {
	began := time.Now()
	statements, own, err := c.withoutFault(ctx)
	if err != nil || len(c.report.findings) > 0 {
		return err
	}
	steps := c.steps(statements, own)
	if c.Guard != nil {
		steps = guardSteps()
	}
	for _, s := range steps {
		if err := c.one(ctx, s); err != nil {
			return fmt.Errorf("step %q: %w", s.name, err)
		}
	}
	logf("oncetest: %d runs of a handler with %s in %v", c.runs, times(own, "statement"), time.Since(began).Round(time.Millisecond))
	return nil
}

// cleanUp leaves nothing of the check, even if a handler hangs.
func (c *checker) cleanUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, defaultTimeout)
	defer cancel()
	return errors.Join(c.restore(ctx), c.forget(ctx))
}

// one makes a run and judges it.
func (c *checker) one(ctx context.Context, s step) error {
	r := c.newRun(s)
	how := s.run
	if how == nil {
		how = usual
	}
	if err := how(ctx, r); err != nil {
		return err
	}
	got, err := r.look(ctx)
	if err != nil {
		return err
	}
	if err := c.restore(ctx); err != nil {
		return err
	}
	return c.judge(ctx, r, got)
}

// judge adds what a run has shown to the report.
func (c *checker) judge(ctx context.Context, r *run, got effects) error {
	if r.swallowed {
		c.report.add(swallowed, "", r.step.name, "the handler returned nil, although its statement had failed")
	}
	for i, change := range r.remains.tables {
		if what := change.String(); what != "" {
			c.report.add(c.kind(remains), c.tables[i].label, r.step.name, what+", and the message was not acked")
		}
	}
	if r.stuck != nil {
		c.report.add(c.kind(stuck), "", r.step.name, r.stuck.Error())
		return nil
	}
	differences := c.differences(got)
	if len(differences) > 0 { // is it the fault, or are values others each time?
		again, err := c.plainRun(ctx)
		if err != nil {
			return err
		}
		c.learn(c.want, again)
		differences = c.differences(got)
	}
	for _, d := range differences {
		c.report.add(c.kind(d.kind), d.where, r.step.name, d.what)
	}
	return nil
}

// withoutFault finds out what the handler does when nothing goes wrong.
func (c *checker) withoutFault(ctx context.Context) (statements []string, own int, err error) {
	if what := c.keyOf(); what != "" {
		c.report.add(keyless, "", "", what)
		return nil, 0, nil
	}
	r := c.newRun(step{})
	p, err := r.start(ctx, fault{})
	if err != nil {
		return nil, 0, err
	}
	p.watch = true
	a, err := p.deliver(c.Message)
	if err = p.stop(err); err != nil {
		return nil, 0, err
	}
	if c.want, err = r.look(ctx); err != nil {
		return nil, 0, err
	}
	if err := c.restore(ctx); err != nil {
		return nil, 0, err
	}
	ran, own, after := p.seen()
	switch {
	case len(after) > 0:
		c.report.add(late, "", "", "it ran "+short(after[0]))
	case a.err != nil && strings.Contains(a.err.Error(), "statement from different database used"): // in database/sql's words
		c.report.add(otherPool, "", "", a.err.Error())
	case a.err != nil:
		c.report.add(failsAlone, "", "", a.err.Error())
	case c.want.none():
		c.report.add(idle, "", "", "no table has changed, the outbox neither")
	default:
		return ran, own, c.repeat(ctx)
	}
	return nil, 0, nil
}

// keyOf says what is wrong with the message's key, if anything is.
func (c *checker) keyOf() string {
	claim := c.once(c.DB, c.prefix+"key", 0).Claim
	if c.Guard != nil {
		claim = c.guard(c.DB, c.prefix+"key").Claim
	}
	var keys [2]string
	for i := range keys {
		var err error
		if _, keys[i], _, err = claim(c.delivery(context.Background(), c.Message, newAttempt())); err != nil {
			return err.Error()
		}
	}
	if keys[0] != keys[1] {
		return fmt.Sprintf("Key returned %q for a message, and %q for its redelivery", keys[0], keys[1])
	}
	return ""
}

// repeat finds out what is not the same in a second run.
func (c *checker) repeat(ctx context.Context) error {
	second, err := c.plainRun(ctx)
	if err != nil {
		return err
	}
	for _, d := range c.learn(c.want, second) {
		c.report.add(unsteady, d.where, "", d.what)
	}
	return nil
}

// plainRun is a run in which nothing goes wrong.
func (c *checker) plainRun(ctx context.Context) (effects, error) {
	r := c.newRun(step{})
	p, err := r.start(ctx, fault{})
	if err != nil {
		return effects{}, err
	}
	_, err = p.deliver(c.Message)
	if err = p.stop(err); err != nil {
		return effects{}, err
	}
	got, err := r.look(ctx)
	if err != nil {
		return effects{}, err
	}
	return got, c.restore(ctx)
}
