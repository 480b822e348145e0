package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/examples/internal/streams"
	"github.com/oncemill/oncemill/testcontainers/postgres"
)

// settings are those of Postgres. Where they say nothing its defaults hold: fsync and
// synchronous_commit are on, and autovacuum comes when it usually does.
var settings = map[string]string{
	"shared_buffers": "512MB",
	"max_wal_size":   "4GB",
}

// A site is the servers, and the conductor's connections to them.
type site struct {
	dir     string // of logs
	about   string // what everything runs on
	server  *postgres.Server
	address string // the database's URL
	db      *sql.DB
	broker  *streams.Broker

	effects, arrivals tally
}

func openSite(ctx context.Context) (s *site, err error) {
	s = &site{effects: tally{table: "effects"}, arrivals: tally{table: "arrivals"}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.dir, err = os.MkdirTemp("", "oncemill-soak-"); err != nil {
		return s, err
	}
	bin, err := postgres.Locate(ctx, os.Stdout)
	if err != nil {
		return s, err
	}
	fmt.Printf("Starting a NATS server, and the Postgres in %s, with their files in %s.\n", bin, os.TempDir())
	if s.server, err = postgres.Start(ctx, postgres.Options{Bin: bin, Settings: settings}); err != nil {
		return s, err
	}
	if s.address, err = crew.CreateDatabase(ctx, s.server, "soak"); err != nil {
		return s, err
	}
	if s.db, err = crew.OpenDB(s.address); err != nil {
		return s, err
	}
	if err := oncemill.Migrate(ctx, s.db, ""); err != nil {
		return s, err
	}
	for _, create := range []string{createEffects, createArrivals} {
		if _, err := s.db.ExecContext(ctx, create); err != nil {
			return s, err
		}
	}
	var version string
	err = s.db.QueryRowContext(ctx, `SHOW server_version`).Scan(&version)
	number, _, _ := strings.Cut(version, " ")
	s.about = fmt.Sprintf("%d cores, %s/%s, %s, Postgres %s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version(), number)
	return s, err
}

// connect connects the conductor to the broker, and makes the streams.
func (s *site) connect(ctx context.Context, address string) (err error) {
	if s.broker, err = streams.Connect(address); err != nil {
		return err
	}
	return createStreams(ctx, s.broker)
}

func (s *site) close() (err error) {
	if s.broker != nil {
		s.broker.Close()
	}
	if s.db != nil {
		err = s.db.Close()
	}
	if s.server != nil {
		err = errors.Join(err, s.server.Close())
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}
