package faults_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill/outbox"
)

// A gate is where connections are made, which wait while it is closed.
type gate struct {
	driver.Connector
	mu     sync.RWMutex
	passed atomic.Int64
}

func (g *gate) Connect(ctx context.Context) (driver.Conn, error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	g.passed.Add(1)
	return g.Connector.Connect(ctx)
}

// A relay need not meet an error in a failover: its connections come from a pool, where
// something else may have found out that they are dead, and may take a while to be made.
// The new primary lacks rows of which the relay knows that they are gone, and gives their
// ids again. Rows that get them are not passed by, nor overtaken.
func TestARelayThatMissesAFailoverKeepsTheOrder(t *testing.T) {
	t.Parallel()
	u, sink := detached(t), &heard{}
	connector, err := pq.NewConnector(u.pair.URL(u.name) + "&application_name=relay")
	must(t, err)
	g := &gate{Connector: connector}
	pool := sql.OpenDB(g)
	t.Cleanup(func() { pool.Close() })
	pool.SetMaxIdleConns(-1) // each fetch has a connection of its own
	relaying(t, &outbox.Relay{DB: pool, Sink: sink})

	// The standby gets none of this, and nobody waits for it.
	u.write(t, `SET LOCAL synchronous_commit = local`, setID(1000),
		`INSERT INTO oncemill.outbox (topic, ordering_key, parked_at) VALUES ('gone', 'other', now())`)
	passed := g.passed.Load()
	eventually(t, "floors are raised", func() bool { return g.passed.Load() > passed+200 })
	g.mu.Lock()
	open := sync.OnceFunc(g.mu.Unlock)
	defer open()
	eventually(t, "the relay has no connection", func() bool {
		return u.look(t, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'relay'`) == 0
	})
	must(t, u.pair.Failover(t.Context()))
	if n := u.look(t, `SELECT count(*) FROM oncemill.outbox`); n != 0 {
		t.Fatal("the standby has the row: the test does not reach what it is for")
	}
	const insert = `INSERT INTO oncemill.outbox (topic, ordering_key) VALUES ('%s', 'k')`
	u.write(t, setID(100), fmt.Sprintf(insert, "first"))
	u.write(t, setID(2000), fmt.Sprintf(insert, "second"))
	open()

	eventually(t, "the outbox is empty", func() bool { return u.look(t, `SELECT count(*) FROM oncemill.outbox`) == 0 })
	if all := sink.all(); !slices.Equal(all, []string{"first", "second"}) {
		t.Errorf("%q are published, want first and second", all)
	}
}

// setID has the next row have an id.
func setID(id int) string {
	return fmt.Sprintf(`SELECT setval(pg_get_serial_sequence('oncemill.outbox', 'id'), %d, false)`, id)
}

// write runs statements in a transaction.
func (u *unconfirmed) write(t *testing.T, statements ...string) {
	t.Helper()
	tx, err := u.db.BeginTx(t.Context(), nil)
	must(t, err)
	defer tx.Rollback()
	for _, s := range statements {
		_, err := tx.ExecContext(t.Context(), s)
		must(t, err)
	}
	must(t, tx.Commit())
}
