package oncemill

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
)

// PlanByIndex returns a connector for the DB of an Inbox with a ClaimBatch. Its
// connections have the setting enable_seqscan = off: all that Oncemill asks for, an index
// has, but on a table that is small, or was when a statement was planned, Postgres
// prefers to read all of it, and goes on to do so while the table grows, until it is
// analyzed. Give handlers' own queries another DB if that is not for them. Where a pooler
// is in between that keeps no settings of a session, as PgBouncer does that pools
// transactions, give the setting to the role instead: ALTER ROLE ... SET enable_seqscan = off.
func PlanByIndex(c driver.Connector) driver.Connector { return planByIndex{c} }

type planByIndex struct{ driver.Connector }

// Connect is for database/sql.
func (p planByIndex) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := p.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	execer, ok := conn.(driver.ExecerContext)
	if !ok {
		return nil, errors.Join(fmt.Errorf("oncemill: PlanByIndex: the driver's %T cannot execute statements", conn), conn.Close())
	}
	if _, err := execer.ExecContext(ctx, `SET enable_seqscan = off`, nil); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// checkPlans reports whether the DB's connections have what ClaimBatch needs.
func (in *Inbox) checkPlans(ctx context.Context) error {
	if in.ClaimBatch <= 1 {
		return nil
	}
	var seqScan string
	if err := in.DB.QueryRowContext(ctx, `SELECT current_setting('enable_seqscan')`).Scan(&seqScan); err != nil {
		return fmt.Errorf("oncemill: Inbox.Check: %w", markUnavailable(err))
	}
	if seqScan != "off" {
		return errors.New("oncemill: Inbox.ClaimBatch needs connections with the setting enable_seqscan = off, or its statements may be planned to read whole tables: open the DB with oncemill.PlanByIndex, or set ClaimBatch to 0; where a pooler is in between that keeps no settings of a session, ALTER ROLE ... SET enable_seqscan = off for the role that connects")
	}
	return nil
}
