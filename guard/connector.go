package guard

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
)

// Connector returns a connector for the sql.DB of a Handler's Inbox, whose connections
// have the setting enable_seqscan = off. All that a guard asks for, an index has; but on a
// table that is small, or was when a statement was planned, Postgres prefers to read all
// of it, and goes on to do so while the table grows, until it is analyzed. A pooler
// between the two must keep a session's settings.
func Connector(c driver.Connector) driver.Connector { return connector{c} }

type connector struct{ driver.Connector }

// Connect is for database/sql.
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	execer, ok := conn.(driver.ExecerContext)
	if !ok {
		return nil, errors.Join(fmt.Errorf("guard: Connector: the driver's %T cannot execute statements", conn), conn.Close())
	}
	if _, err := execer.ExecContext(ctx, "SET enable_seqscan = off", nil); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}
