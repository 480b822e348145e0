package oncetest

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"
)

// errLost is what a statement gets whose connection a step has broken.
var errLost = fmt.Errorf("oncetest: the connection was lost, as this step of the check wants it: %w", io.ErrUnexpectedEOF)

// A connector makes the connections of one process. Each is one of the pool under test, so
// that driver and server are the real ones, and knows the moment to break.
type connector struct{ p *process }

func (c connector) Driver() driver.Driver { return c.p.c.DB.Driver() }

// Connect is for database/sql.
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	if c.p.isDead() {
		if c.p.c.Guard != nil {
			runtime.Goexit() // of what the process has died in: a claim is sought for seconds
		}
		return nil, errLost
	}
	b, err := borrow(ctx, c.p.c.DB)
	if err != nil {
		return nil, err
	}
	own := &conn{p: c.p, borrowed: b}
	c.p.keep(own)
	return own, nil
}

// borrowed is a connection out of a pool.
type borrowed struct {
	driverConn
	end  chan error    // nil: it goes back to the pool; driver.ErrBadConn: it is closed
	gone chan struct{} // closed when that is done
	over atomic.Bool
}

// driverConn is what lib/pq and pgx have.
type driverConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
}

// borrow takes a connection. database/sql lends the driver's connection to a function, and
// as long as that runs; so one runs until the connection is not needed any more.
func borrow(ctx context.Context, db *sql.DB) (*borrowed, error) {
	lent, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	b := &borrowed{end: make(chan error, 1), gone: make(chan struct{})}
	got := make(chan any, 1)
	go func() {
		defer close(b.gone)
		_ = lent.Raw(func(dc any) error {
			got <- dc
			return <-b.end
		})
		_ = lent.Close()
	}()
	select {
	case dc := <-got:
		var ok bool
		if b.driverConn, ok = dc.(driverConn); !ok {
			return nil, errors.Join(b.Close(), fmt.Errorf("oncetest: the driver's %T lacks a method with a context: use lib/pq or pgx", dc))
		}
		return b, nil
	case <-b.gone:
		return nil, errors.New("oncetest: the pool was closed")
	}
}

// Close gives the connection back.
func (b *borrowed) Close() error { return b.finish(nil) }

// cut closes the connection, by which Postgres rolls back what is not committed.
func (b *borrowed) cut() { _ = b.finish(driver.ErrBadConn) }

func (b *borrowed) finish(how error) error {
	if !b.over.Swap(true) {
		b.end <- how
	}
	<-b.gone
	return nil
}

// A conn breaks, or has a statement fail, when its process says so.
type conn struct {
	p *process
	*borrowed
	inTx bool
}

// Close gives the connection back, unless a transaction is open on it.
func (c *conn) Close() error {
	if c.inTx {
		c.cut()
		return nil
	}
	return c.borrowed.Close()
}

func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (result driver.Result, err error) {
	err = c.statement(ctx, query, func() error {
		result, err = c.driverConn.ExecContext(ctx, query, args)
		return err
	})
	return result, err
}

func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (rows driver.Rows, err error) {
	return c.query(ctx, query, func() (driver.Rows, error) { return c.driverConn.QueryContext(ctx, query, args) })
}

func (c *conn) query(ctx context.Context, query string, run func() (driver.Rows, error)) (rows driver.Rows, err error) {
	err = c.statement(ctx, query, func() error {
		rows, err = run()
		if err == nil && c.p.breaksNow() { // while the connection is there to close them on
			err = rows.Close()
		}
		return err
	})
	if err != nil {
		rows = nil
	}
	return rows, err
}

// statement runs a statement, with what the step wants of it.
func (c *conn) statement(ctx context.Context, query string, run func() error) error {
	if c.over.Load() {
		return errLost
	}
	switch c.p.begins(query) {
	case breaks:
		c.p.die()
		return errLost
	case fails:
		return c.refuse(ctx)
	case nothing:
	}
	if err := run(); err != nil {
		return err
	}
	if c.p.breaksNow() {
		c.p.die()
		return errLost
	}
	return nil
}

// refuse has a statement fail with which Postgres aborts the transaction. Its SQLSTATE is
// one that no handler can do anything about.
func (c *conn) refuse(ctx context.Context) error {
	_, err := c.driverConn.ExecContext(ctx, `DO $$ BEGIN RAISE EXCEPTION 'oncetest: this statement fails, as this step of the check wants it' USING ERRCODE = '40001'; END $$`, nil)
	return err
}

// Raw returns the driver's own connection, for oncemill.Tx.Raw: what is done there counts
// as one statement.
func (c *conn) Raw() driver.Conn {
	switch c.p.begins("Tx.Raw") {
	case breaks:
		c.p.die()
	case fails:
		_ = c.refuse(context.Background()) // as does what follows
	case nothing:
	}
	return c.driverConn
}

func (c *conn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if c.over.Load() {
		return nil, errLost
	}
	s, err := c.driverConn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	own, ok := s.(driverStmt)
	if !ok {
		return nil, errors.Join(fmt.Errorf("oncetest: the driver's %T lacks a method with a context: use lib/pq or pgx", s), s.Close())
	}
	return &stmt{driverStmt: own, c: c, text: query}, nil
}

func (c *conn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if c.over.Load() {
		return nil, errLost
	}
	t, err := c.driverConn.BeginTx(ctx, opts)
	if err != nil {
		return nil, err
	}
	c.inTx = true
	return &transaction{Tx: t, c: c}, nil
}

func (c *conn) CheckNamedValue(value *driver.NamedValue) error {
	if checker, ok := c.driverConn.(driver.NamedValueChecker); ok {
		return checker.CheckNamedValue(value)
	}
	return driver.ErrSkip
}

func (c *conn) ResetSession(ctx context.Context) error {
	if c.over.Load() {
		return driver.ErrBadConn
	}
	if resetter, ok := c.driverConn.(driver.SessionResetter); ok {
		return resetter.ResetSession(ctx)
	}
	return nil
}

func (c *conn) IsValid() bool {
	if c.over.Load() {
		return false
	}
	validator, ok := c.driverConn.(driver.Validator)
	return !ok || validator.IsValid()
}

type driverStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

type stmt struct {
	driverStmt
	c    *conn
	text string
}

func (s *stmt) Close() error {
	if s.c.over.Load() {
		return nil // it is gone with its connection
	}
	return s.driverStmt.Close()
}

func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (result driver.Result, err error) {
	err = s.c.statement(ctx, s.text, func() error {
		result, err = s.driverStmt.ExecContext(ctx, args)
		return err
	})
	return result, err
}

func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.c.query(ctx, s.text, func() (driver.Rows, error) { return s.driverStmt.QueryContext(ctx, args) })
}

func (s *stmt) CheckNamedValue(value *driver.NamedValue) error {
	if checker, ok := s.driverStmt.(driver.NamedValueChecker); ok {
		return checker.CheckNamedValue(value)
	}
	return s.c.CheckNamedValue(value)
}

type transaction struct {
	driver.Tx
	c *conn
}

func (t *transaction) Commit() error {
	if t.c.over.Load() {
		return errLost
	}
	before, after := t.c.p.commits()
	if before {
		t.c.p.die()
		return errLost
	}
	if err := t.ended(t.Tx.Commit()); err != nil {
		return err
	}
	if after {
		t.c.p.die()
		return errLost
	}
	return nil
}

func (t *transaction) Rollback() error {
	t.c.p.rollsBack()
	if t.c.over.Load() {
		return errLost
	}
	return t.ended(t.Tx.Rollback())
}

func (t *transaction) ended(err error) error {
	t.c.inTx = err != nil
	return err
}
