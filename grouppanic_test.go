package oncemill_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill"
)

// panicking has a driver that panics at what a test wants it to.
type panicking struct {
	driver.Connector
	at atomic.Pointer[string]
}

func (p *panicking) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := p.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &panickingConn{conn.(fullConn), p}, nil
}

type fullConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.QueryerContext
	driver.ExecerContext
}

type panickingConn struct {
	fullConn
	p *panicking
}

func (c *panickingConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	stmt, err := c.fullConn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return panickingStmt{stmt.(fullStmt), c.p}, nil
}

type fullStmt interface {
	driver.Stmt
	driver.StmtQueryContext
	driver.StmtExecContext
}

type panickingStmt struct {
	fullStmt
	p *panicking
}

func (s panickingStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	for _, arg := range args {
		text, _ := arg.Value.(string)
		if at := s.p.at.Load(); at != nil && strings.Contains(text, *at) && s.p.at.CompareAndSwap(at, nil) {
			panic("at " + *at)
		}
	}
	return s.fullStmt.QueryContext(ctx, args)
}

func TestAPanicInASharedStatementLeavesNobodyWaiting(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	connector, err := pq.NewConnector(f.url)
	must(t, err)
	p := &panicking{Connector: connector}
	db := sql.OpenDB(p)
	defer db.Close()
	in := sharing(db)
	c := in.Consumer("test")
	claim(t, c, "warm", oncemill.ClaimOptions{})
	at := `"3"`
	p.at.Store(&at)
	together(16, func(i int) {
		if _, err := c.Claim(within(t), fmt.Sprint(i), oncemill.ClaimOptions{}); err != nil {
			t.Error(err)
		}
	})
	claim(t, c, "after", oncemill.ClaimOptions{})
}
