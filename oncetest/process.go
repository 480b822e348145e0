package oncetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/delivery"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
)

const (
	// defaultTimeout is how long a delivery may take, unless Case.Timeout says otherwise.
	defaultTimeout = 30 * time.Second

	// A router waits so long for handlers whose process is to end, when they are late.
	closeTimeout = 5 * time.Second
)

// A process is what a consumer's process has: a router, an Inbox and a pool. When it dies,
// none of its connections is there any more, and no new one can be had.
type process struct {
	c      *checker
	fault  fault
	batch  int
	watch  bool // for goroutines that the handler leaves
	db     *sql.DB
	router *message.Router
	ctx    context.Context // of its messages
	cancel context.CancelFunc
	feed   chan *message.Message
	ended  chan error

	mu    sync.Mutex
	dead  bool
	fired bool // the fault has happened
	conns []*conn
	phase phase
	ran   []string // the handler's statements, and then those for what it has returned
	own   int      // how many of them are the handler's
	now   bool     // with the one under way, the process dies
	late  []string // statements of goroutines that the handler has left
}

// A phase is how far the handler has come.
type phase int

const (
	outside phase = iota // it does not run
	inHandler
	lingers  // it has returned, and its goroutines may have not
	returned // what it has returned is written, and all is committed
)

// start starts a process for a consumer.
func (c *checker) start(ctx context.Context, consumer string, f fault, batch int) (*process, error) {
	p := &process{c: c, fault: f, batch: batch, feed: make(chan *message.Message), ended: make(chan error, 1)}
	p.db = sql.OpenDB(connector{p})
	p.ctx, p.cancel = context.WithCancel(context.WithoutCancel(c.Message.Context()))
	ours := c.once(p.db, consumer, batch).Middleware
	if c.Guard != nil {
		ours = c.guard(p.db, consumer).Middleware
	}
	var err error
	if p.router, err = message.NewRouter(message.RouterConfig{CloseTimeout: closeTimeout}, watermill.NopLogger{}); err != nil {
		return nil, errors.Join(err, p.db.Close())
	}
	p.router.AddMiddleware(p.observe, ours)
	p.router.AddHandler("oncetest", "oncetest", (*subscriber)(p), c.Topic, &outbox.Publisher{Schema: c.schema}, p.handle)
	go func() { p.ended <- p.router.Run(ctx) }()
	select {
	case <-p.router.Running():
		return p, nil
	case err := <-p.ended:
		return nil, errors.Join(err, p.db.Close())
	}
}

// once is the middleware with which a process works.
func (c *checker) once(db *sql.DB, consumer string, batch int) middleware.Once {
	once := c.Once
	once.Consumer = consumer
	once.Outbox = &outbox.Publisher{Schema: c.schema}
	once.Inbox = &oncemill.Inbox{DB: db, Schema: c.schema, Batch: batch, Logger: slog.New(slog.DiscardHandler)}
	once.Key = keyFunc(once.Key)
	return once
}

// keyFunc returns what tells the handler's messages and those of a step, which are copies,
// apart.
func keyFunc(own middleware.KeyFunc) middleware.KeyFunc {
	if own == nil {
		own = middleware.ByUUID
	}
	return func(msg *message.Message) (string, error) {
		if attemptOf(msg).instead != nil {
			return msg.UUID, nil
		}
		return own(msg)
	}
}

// stop ends the process, as a deployment does if err is nil. Else something hangs, and
// connections that are cut set it free. It returns err, and what goes wrong itself.
func (p *process) stop(err error) error {
	defer p.cancel()
	if err != nil {
		p.die()
	}
	return errors.Join(err, p.router.Close(), <-p.ended, p.db.Close())
}

// subscriber is where a process gets its messages from.
type subscriber process

func (s *subscriber) Subscribe(context.Context, string) (<-chan *message.Message, error) {
	return s.feed, nil
}

func (s *subscriber) Close() error {
	close(s.feed)
	return nil
}

// An attempt is one delivery.
type attempt struct {
	instead func() error  // is run, and not the handler; nil: that
	until   chan struct{} // for this the handler waits when it has returned; nil: it does not

	arrived   chan struct{} // closed when it has reached the inbox
	once      sync.Once
	over      chan struct{} // closed when it is acked or nacked
	err       error         // for which it was nacked, or nil
	handlerOK bool          // it has returned, and no error
}

type attemptKey struct{}

func attemptOf(msg *message.Message) *attempt { return msg.Context().Value(attemptKey{}).(*attempt) }

func newAttempt() *attempt {
	return &attempt{arrived: make(chan struct{}), over: make(chan struct{})}
}

// delivery is a message as a subscriber hands it out.
func (c *checker) delivery(ctx context.Context, msg *message.Message, a *attempt) *message.Message {
	own := msg.Copy()
	ctx = context.WithValue(ctx, attemptKey{}, a)
	// In a line of its own; by it an Inbox with batches tells when it has the message.
	turn := &delivery.Turn{Line: delivery.NewLine(), Number: 1, Kept: func() { a.once.Do(func() { close(a.arrived) }) }}
	own.SetContext(delivery.With(ctx, delivery.Info{Turn: turn, Delay: new(delivery.Delay), Position: "oncetest/" + msg.UUID}))
	return own
}

// send hands out a message.
func (p *process) send(msg *message.Message, a *attempt) error {
	own := p.c.delivery(p.ctx, msg, a)
	select {
	case p.feed <- own:
		return nil
	case <-time.After(p.c.Timeout):
		return errors.New("the router takes no message")
	}
}

// deliver hands out a message, and waits for what becomes of it.
func (p *process) deliver(msg *message.Message) (*attempt, error) {
	a := newAttempt()
	if err := p.send(msg, a); err != nil {
		return a, err
	}
	return a, p.c.wait(a)
}

func (c *checker) wait(a *attempt) error {
	return c.within(a.over, "the delivery is neither acked nor nacked")
}

// within waits for a signal.
func (c *checker) within(signal <-chan struct{}, otherwise string) error {
	select {
	case <-signal:
		return nil
	case <-time.After(c.Timeout):
		return fmt.Errorf("%s after %v (Case.Timeout): does the handler wait, on a connection of its own, for a row that its transaction has changed?", otherwise, c.Timeout)
	}
}

// observe is the outermost middleware.
func (p *process) observe(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) (out []*message.Message, err error) {
		a := attemptOf(msg)
		finished := false
		defer func() {
			switch panicked := recover(); {
			case panicked != nil:
				err = fmt.Errorf("the handler panicked: %v", panicked)
			case !finished && p.isDead():
				err = errLost
			case !finished:
				err = errors.New("the handler has ended its goroutine: t.FailNow and t.Fatal are for the goroutine of the test")
			}
			a.err = err
			close(a.over)
		}()
		if p.batch == 0 {
			a.once.Do(func() { close(a.arrived) })
		}
		out, err = h(msg)
		finished = true
		return out, err
	}
}

// handle is the handler as Once runs it.
func (p *process) handle(msg *message.Message) ([]*message.Message, error) {
	a := attemptOf(msg)
	if a.instead != nil {
		return nil, a.instead()
	}
	a.handlerOK = false
	p.enter(inHandler)
	out, err := p.c.Handler(msg)
	a.handlerOK = err == nil
	if p.watch {
		p.enter(lingers)
		waitForGoroutines(p.hasLate)
	}
	p.enter(returned)
	if p.fault.at == atReturn && !p.fired {
		p.fired = true
		p.die()
		return nil, errLost
	}
	if a.until != nil {
		if late := p.c.within(a.until, "the other delivery has not arrived"); late != nil {
			return nil, late
		}
	}
	return out, err
}

func (p *process) enter(next phase) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.phase = next
}

// begins is called before a statement is sent.
func (p *process) begins(query string) action {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch p.phase {
	case outside:
		return nothing
	case lingers:
		p.late = append(p.late, query)
		return nothing
	case inHandler:
		p.own++
	case returned:
	}
	p.ran = append(p.ran, query)
	if p.fired || p.fault.n != len(p.ran) {
		return nothing
	}
	p.fired = true
	switch p.fault.at {
	case atStatement:
		return breaks
	case failing:
		return fails
	case afterStatement:
		p.now = true
	}
	return nothing
}

// breaksNow reports whether the process dies with the statement that was run.
func (p *process) breaksNow() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now
}

// commits is called before a COMMIT, and tells whether the process dies before or after it.
func (p *process) commits() (before, after bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fired {
		return false, false
	}
	switch p.phase {
	case outside: // Guard's claim
		before, after = p.fault.at == beforeClaim, p.fault.at == afterClaim
	case returned:
		before, after = p.fault.at == beforeCommit, p.fault.at == afterCommit
		p.phase = outside
	case inHandler, lingers:
	}
	p.fired = before || after
	return before, after
}

func (p *process) rollsBack() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase == returned || p.phase == inHandler {
		p.phase = outside
	}
}

func (p *process) hasLate() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.late) > 0
}

// seen returns what was run: in all, by the handler, and after its return.
func (p *process) seen() (all []string, own int, after []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.ran), p.own, slices.Clone(p.late)
}

func (p *process) isDead() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead
}

func (p *process) keep(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns = append(p.conns, c)
}

// die ends all connections, and the messages' contexts, so that nobody tries again.
func (p *process) die() {
	p.mu.Lock()
	p.dead, p.now = true, false
	conns := p.conns
	p.conns = nil
	p.mu.Unlock()
	p.cancel()
	for _, c := range conns {
		c.cut()
	}
}
