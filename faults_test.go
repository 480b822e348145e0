package oncemill_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
)

// proxy stands between a pool and Postgres, and can cut a connection around a
// COMMIT.
type proxy struct {
	t        *testing.T
	listener net.Listener
	server   string
	cut      atomic.Pointer[string] // "before" or "after" the next COMMIT
	silent   atomic.Bool            // answers are swallowed; the connections stay
	wg       sync.WaitGroup
}

// throughProxy returns a proxy and the database's URL through it.
func (f *fixture) throughProxy() (*proxy, string) {
	f.t.Helper()
	u, err := url.Parse(f.url)
	must(f.t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(f.t, err)
	p := &proxy{t: f.t, listener: listener, server: u.Host}
	p.wg.Go(p.accept)
	f.t.Cleanup(func() {
		listener.Close()
		p.wg.Wait()
	})
	u.Host = listener.Addr().String()
	return p, u.String()
}

func (p *proxy) cutNext(when string) { p.cut.Store(&when) }

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.server)
		if err != nil {
			p.t.Error(err)
			client.Close()
			return
		}
		var muted atomic.Bool
		p.t.Cleanup(func() { client.Close() })
		p.wg.Go(func() { // answers
			defer client.Close()
			defer server.Close()
			buf := make([]byte, 32<<10)
			for {
				n, err := server.Read(buf)
				if err != nil || muted.Load() {
					return // the answer is lost, and with it the connection
				}
				if p.silent.Load() {
					continue
				}
				if _, err := client.Write(buf[:n]); err != nil {
					return
				}
			}
		})
		p.wg.Go(func() { // requests
			defer server.Close()
			buf := make([]byte, 32<<10)
			for {
				n, err := client.Read(buf)
				if err != nil {
					return
				}
				if bytes.Contains(bytes.ToUpper(buf[:n]), []byte("COMMIT\x00")) {
					if when := p.cut.Swap(nil); when != nil && *when == "before" {
						client.Close()
						return
					} else if when != nil {
						muted.Store(true)
					}
				}
				if _, err := server.Write(buf[:n]); err != nil {
					return
				}
			}
		})
	}
}

func TestConnectionLostAroundCommit(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"postgres", "pgx"} {
		for when, committed := range map[string]int{"before": 0, "after": 1} {
			t.Run(driver+" "+when, func(t *testing.T) {
				t.Parallel()
				f := newFixture(t)
				p, url := f.throughProxy()
				db := f.open(driver, url)
				c := (&oncemill.Inbox{DB: db}).Consumer("test")

				err := c.Once(within(t), "k", func(ctx context.Context, tx oncemill.Tx) error {
					p.cutNext(when)
					return effect("a")(ctx, tx)
				})
				var e *oncemill.Error
				if !errors.As(err, &e) || e.Op != oncemill.OpCommit || oncemill.IsHandlerError(err) {
					t.Fatalf("got %v, want an error of COMMIT", err)
				}
				want(t, err, oncemill.ErrUnavailable)
				if when == "after" {
					f.wantEffects("a", committed)
				}
				// The message is delivered again; either way there is one effect.
				must(t, c.Once(within(t), "k", effect("a")))
				f.wantEffects("a", 1)
				db.Close()
			})
		}
	}
}

func TestConnectionLostInTheHandler(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"postgres", "pgx"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			c := (&oncemill.Inbox{DB: f.open(driver, f.url)}).Consumer("test")
			err := c.Once(within(t), "k", func(ctx context.Context, tx oncemill.Tx) error {
				must(t, effect("a")(ctx, tx))
				var pid int
				must(t, tx.QueryRowContext(ctx, "SELECT pg_backend_pid()").Scan(&pid))
				f.exec("SELECT pg_terminate_backend($1, 10000)", pid)
				return effect("a")(ctx, tx)
			})
			want(t, err, oncemill.ErrUnavailable)
			if oncemill.IsHandlerError(err) {
				t.Errorf("%v must not count towards a dead letter", err)
			}
			f.wantEffects("a", 0)
			must(t, c.Once(within(t), "k", effect("a")))
			f.wantEffects("a", 1)
		})
	}
}

// Most handlers end a context of their own, as with a deferred cancel. That says
// nothing about why the connection was lost.
func TestAConnectionLostAfterTheHandlersContextEnded(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"postgres", "pgx"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			p, url := f.throughProxy()
			db := f.open(driver, url)
			c := (&oncemill.Inbox{DB: db}).Consumer("test")
			err := c.Once(within(t), "k", func(ctx context.Context, tx oncemill.Tx) error {
				ctx, cancel := context.WithTimeout(ctx, time.Minute)
				defer cancel()
				p.cutNext("before")
				return effect("a")(ctx, tx)
			})
			want(t, err, oncemill.ErrUnavailable)
			if oncemill.IsHandlerError(err) {
				t.Errorf("%v must not count towards a dead letter", err)
			}
			db.Close()
		})
	}
}

// A panic over a statement that the drain cancelled is not the handler's fault.
func TestAPanicDuringTheDrainDoesNotCount(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := (&oncemill.Inbox{DB: f.db, DrainTimeout: 50 * time.Millisecond}).Consumer("test")
	ctx, cancel := context.WithCancel(within(t))
	err := c.Once(ctx, "k", func(ctx context.Context, tx oncemill.Tx) error {
		cancel()
		_, err := tx.ExecContext(ctx, "SELECT pg_sleep(60)")
		panic(err)
	})
	want(t, err, oncemill.ErrDrained)
	if oncemill.IsHandlerError(err) {
		t.Errorf("%v must not count towards a dead letter", err)
	}
}

// A handler's own network errors say nothing about the database.
func TestANetworkErrorOfTheHandlerCounts(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, failure := range []error{&net.OpError{Op: "dial", Err: errors.New("refused")}, io.EOF} {
		err := f.consumer().Once(within(t), "k", func(context.Context, oncemill.Tx) error { return failure })
		if !oncemill.IsHandlerError(err) || errors.Is(err, oncemill.ErrUnavailable) {
			t.Errorf("%v should count as the handler's", err)
		}
	}
}

func TestAFrozenWorkerLosesItsTransactionAndTheRedeliveryRuns(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	frozen := (&oncemill.Inbox{DB: f.db, IdleTimeout: 100 * time.Millisecond}).Consumer("test")
	other := f.consumer()
	err := frozen.Once(within(t), "k", func(ctx context.Context, tx oncemill.Tx) error {
		must(t, effect("frozen")(ctx, tx))
		// While this handler does nothing, the message is delivered elsewhere.
		err := oncemill.ErrInFlight
		for errors.Is(err, oncemill.ErrInFlight) {
			err = other.Once(within(t), "k", effect("a"))
		}
		must(t, err)
		return nil // as if it had finished
	})
	want(t, err, oncemill.ErrIdle)
	f.wantEffects("frozen", 0)
	f.wantEffects("a", 1)
}

func TestADeadlockIsNotTheHandlersFault(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exec(`INSERT INTO effects VALUES ('x'), ('y')`)
	lock := func(ctx context.Context, tx oncemill.Tx, name string) error {
		_, err := tx.ExecContext(ctx, `UPDATE effects SET name = name WHERE name = $1`, name)
		return err
	}
	var both, wg sync.WaitGroup
	both.Add(2)
	errs := make([]error, 2)
	for i, order := range [][]string{{"x", "y"}, {"y", "x"}} {
		wg.Go(func() {
			errs[i] = f.consumer().Once(within(t), order[0], func(ctx context.Context, tx oncemill.Tx) error {
				err := lock(ctx, tx, order[0])
				both.Done()
				both.Wait()
				return errors.Join(err, lock(ctx, tx, order[1]))
			})
		})
	}
	wg.Wait()
	err := errors.Join(errs...)
	if !oncemill.IsSerialization(err) || errs[0] != nil && errs[1] != nil {
		t.Fatalf("got %v, %v, want one deadlock", errs[0], errs[1])
	}
	for _, err := range errs {
		if err != nil && oncemill.IsHandlerError(err) {
			t.Errorf("%v must not count towards a dead letter", err)
		}
	}
}

func TestACommitThatHangsIsGivenUpAsUnknown(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "an advisory lock of a session")
	f := newFixture(t)
	// A constraint trigger makes COMMIT wait for a lock that the test holds.
	f.exec(`CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$`)
	f.exec(`CREATE CONSTRAINT TRIGGER hang AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION hang()`)
	holder, err := f.db.Conn(within(t))
	must(t, err)
	defer holder.Close()
	lock := func(query string) {
		_, err := holder.ExecContext(within(t), query)
		must(t, err)
	}
	lock("SELECT pg_advisory_lock(1)")

	c := (&oncemill.Inbox{DB: f.db, DrainTimeout: 50 * time.Millisecond}).Consumer("test")
	ctx, cancel := context.WithCancel(within(t))
	err = c.Once(ctx, "k", func(ctx context.Context, tx oncemill.Tx) error {
		cancel() // as a router does that closes
		return effect("a")(ctx, tx)
	})
	var e *oncemill.Error
	if !errors.As(err, &e) || e.Op != oncemill.OpCommit || oncemill.IsHandlerError(err) {
		t.Fatalf("got %v, want an unknown outcome of COMMIT", err)
	}
	want(t, err, oncemill.ErrDrained)
	// Nobody has cancelled the COMMIT: it succeeds when it can, and the next
	// delivery is a duplicate.
	lock("SELECT pg_advisory_unlock(1)")
	must(t, f.consumer().Once(within(t), "k", effect("a")))
	f.wantEffects("a", 1)
}

// A server that does not answer any more, and does not break the connection
// either, must not keep a router from closing.
func TestASilentServerDoesNotOutlastTheDrain(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"postgres", "pgx"} {
		for _, stage := range []string{"begin", "rollback", "commit"} {
			t.Run(driver+" "+stage, func(t *testing.T) {
				t.Parallel()
				f := newFixture(t)
				p, url := f.throughProxy()
				db := f.open(driver, url)
				db.SetMaxOpenConns(1)
				c := (&oncemill.Inbox{DB: db, DrainTimeout: 50 * time.Millisecond}).Consumer("test")
				must(t, c.Once(within(t), "first", effect("first"))) // a connection in the pool

				ctx, cancel := context.WithCancel(within(t))
				if stage == "begin" {
					p.silent.Store(true)
					time.AfterFunc(50*time.Millisecond, cancel)
				}
				err := c.Once(ctx, "k", func(ctx context.Context, tx oncemill.Tx) error {
					must(t, effect("a")(ctx, tx))
					p.silent.Store(true)
					cancel()
					if stage == "rollback" {
						return errors.New("no")
					}
					return nil
				})
				if stage == "begin" {
					want(t, err, context.Canceled) // nothing has begun that could be drained
				} else {
					want(t, err, oncemill.ErrDrained)
				}
				if oncemill.IsHandlerError(err) {
					t.Errorf("%v must not count towards a dead letter", err)
				}
			})
		}
	}
}
