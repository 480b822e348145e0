package postgres

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

const (
	// standbyName is what a standby is called by its primary: its connection, and
	// the replication slot that keeps for it what it has not received.
	standbyName = "standby"

	// standbySignal is the file that makes a server start as a standby.
	standbySignal = "standby.signal"
)

// session runs fn with a connection to the server, as a superuser.
func (s *Server) session(ctx context.Context, fn func(*sql.Conn) error) error {
	db, err := sql.Open("postgres", s.URL(""))
	if err != nil {
		return err
	}
	defer db.Close()
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return fn(conn)
}

// until asks the server again and again, until a query that returns one boolean
// returns true.
func until(ctx context.Context, conn *sql.Conn, query string, args ...any) error {
	for {
		var is bool
		if err := conn.QueryRowContext(ctx, query, args...).Scan(&is); err != nil || is {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w, and this was never true: %s", context.Cause(ctx), query)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// set changes a setting of the running server, and returns when a session has
// seen it. value must have no quote in it.
func set(ctx context.Context, conn *sql.Conn, name, value string) error {
	if _, err := conn.ExecContext(ctx, fmt.Sprintf(`ALTER SYSTEM SET %s = '%s'`, name, value)); err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, `SELECT pg_reload_conf()`); err != nil {
		return err
	}
	return until(ctx, conn, `SELECT current_setting($1) = $2`, name, value)
}

// waitFor has COMMITs wait for the standby of that name, or for none with "". It
// returns when that is in force for every session.
func (s *Server) waitFor(ctx context.Context, standby string) error {
	return s.session(ctx, func(conn *sql.Conn) error {
		if err := set(ctx, conn, "synchronous_standby_names", standby); err != nil || standby == "" {
			return err
		}
		err := until(ctx, conn, `SELECT EXISTS (SELECT FROM pg_stat_replication WHERE application_name = $1 AND sync_state = 'sync')`, standby)
		if err != nil {
			return err
		}
		// It is the checkpointer that tells all sessions, after it has read the
		// new setting: at the latest before it does what it is asked for next.
		_, err = conn.ExecContext(ctx, `CHECKPOINT`)
		return err
	})
}

// streams waits until the standby receives what is written as it is written.
func (s *Server) streams(ctx context.Context) error {
	return s.session(ctx, func(conn *sql.Conn) error {
		return until(ctx, conn, `SELECT EXISTS (SELECT FROM pg_stat_replication WHERE application_name = $1 AND state = 'streaming')`, standbyName)
	})
}

// received waits until the standby has all that has been flushed so far, as every
// commit is before it is acknowledged.
func (s *Server) received(ctx context.Context) error {
	return s.session(ctx, func(conn *sql.Conn) error {
		var end string
		if err := conn.QueryRowContext(ctx, `SELECT pg_current_wal_flush_lsn()`).Scan(&end); err != nil {
			return err
		}
		return until(ctx, conn, `SELECT EXISTS (SELECT FROM pg_stat_replication WHERE application_name = $1 AND flush_lsn >= $2::pg_lsn)`, standbyName, end)
	})
}

// follow makes a running standby follow a primary, or none with nil. In that case
// it returns when nothing is received any more.
func (s *Server) follow(ctx context.Context, primary *Server) error {
	return s.session(ctx, func(conn *sql.Conn) error {
		if primary != nil {
			return set(ctx, conn, "primary_conninfo", primary.conninfo())
		}
		if err := set(ctx, conn, "primary_conninfo", ""); err != nil {
			return err
		}
		return until(ctx, conn, `SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'walreceiver')`)
	})
}

// conninfo is a primary's address for its standby.
func (s *Server) conninfo() string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres password=%s sslmode=disable application_name=%s", s.port, s.password, standbyName)
}

// copyFrom replaces a stopped server's data by those of a running primary, such
// that it starts as its standby.
func (s *Server) copyFrom(ctx context.Context, primary *Server) error {
	removeSegment(filepath.Join(s.data(), "postmaster.pid"), s.pid)
	if err := os.RemoveAll(s.data()); err != nil {
		return err
	}
	err := primary.session(ctx, func(conn *sql.Conn) error {
		if err := makeSlot(ctx, conn); err != nil {
			return err
		}
		label, err := backup(ctx, conn, func() error { return s.copyData(ctx, primary.data()) })
		if err != nil {
			return err
		}
		return s.write("backup_label", label)
	})
	if err != nil {
		return fmt.Errorf("copy the primary's data: %w", err)
	}
	// The last line for a setting is the one that counts.
	err = s.add("postgresql.auto.conf", fmt.Sprintf("primary_conninfo = '%s'\nprimary_slot_name = '%s'\nsynchronous_standby_names = ''\n",
		primary.conninfo(), standbyName))
	if err != nil {
		return err
	}
	return s.write(standbySignal, "")
}

// makeSlot has the primary keep, from now on, what its standby has not received.
func makeSlot(ctx context.Context, conn *sql.Conn) error {
	_, err := conn.ExecContext(ctx, `SELECT pg_create_physical_replication_slot($1, true)
		WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)`, standbyName)
	return err
}

// backup runs fn, which copies the data directory of a running server, and
// returns the backup_label that belongs into the copy. Both calls must come from
// one session.
func backup(ctx context.Context, conn *sql.Conn, fn func() error) (label string, err error) {
	begin, end := `SELECT pg_backup_start('a standby', true)`, `SELECT labelfile FROM pg_backup_stop(false)`
	var version int
	if err := conn.QueryRowContext(ctx, `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		return "", err
	}
	if version < 150000 {
		begin, end = `SELECT pg_start_backup('a standby', true, false)`, `SELECT labelfile FROM pg_stop_backup(false, false)`
	}
	if _, err := conn.ExecContext(ctx, begin); err != nil {
		return "", err
	}
	if err := fn(); err != nil {
		return "", err // the end of the session ends the backup
	}
	err = conn.QueryRowContext(ctx, end).Scan(&label)
	return label, err
}
