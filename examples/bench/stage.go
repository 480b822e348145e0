package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/examples/internal/screen"
	"github.com/oncemill/oncemill/examples/internal/stats"
	"github.com/oncemill/oncemill/examples/internal/streams"
	"github.com/oncemill/oncemill/testcontainers/postgres"
)

// settings are those of Postgres. Where they say nothing its defaults hold: fsync and
// synchronous_commit are on. Checkpoints come between the turns, not in one of them.
var settings = map[string]string{
	"shared_buffers":     "512MB",
	"max_wal_size":       "4GB",
	"min_wal_size":       "2GB",
	"checkpoint_timeout": "1h",
}

// A stage has the servers, the databases and the processes.
type stage struct {
	options options
	dir     string // of logs
	screen  *screen.Screen

	crew    *crew.Crew
	reports map[*crew.Child]report // the last of each worker

	server     *postgres.Server
	postmaster int    // the process
	flush      string // how long the disk takes
	proxy      *proxy // nil: none
	databases  map[string]*database

	nats   *crew.Child
	broker *streams.Broker
	js     natsjs.JetStream
	where  string // the broker's URL

	turns   int               // so far
	chosen  map[string]choice // by contender
	rates   map[string]float64
	closers []func() error // last first
}

// open starts the servers.
func open(ctx context.Context, o options) (s *stage, err error) {
	s = &stage{options: o, screen: screen.New(os.Stdout), reports: make(map[*crew.Child]report), databases: make(map[string]*database),
		chosen: make(map[string]choice), rates: make(map[string]float64)}
	if s.dir, err = os.MkdirTemp("", "oncemill-bench-"); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, func() error { return os.RemoveAll(s.dir) })
	s.screen.Restart()
	for _, start := range []func(context.Context) error{s.measureFlush, s.startPostgres, s.startProxy, s.startBroker} {
		if err := start(ctx); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	return s, nil
}

func (s *stage) startPostgres(ctx context.Context) error {
	bin, err := postgres.Locate(ctx, os.Stdout)
	if err != nil {
		return err
	}
	fmt.Printf("Starting the NATS server, and the Postgres in %s, with their files in %s.\n", bin, os.TempDir())
	if s.server, err = postgres.Start(ctx, postgres.Options{Bin: bin, Settings: settings}); err != nil {
		return err
	}
	s.closers = append(s.closers, s.server.Close)
	s.postmaster, err = postmasterOf(ctx, s.server.URL(""))
	return err
}

func (s *stage) startProxy(context.Context) (err error) {
	if s.options.latency == 0 {
		return nil
	}
	if s.proxy, err = startProxy(s.server.Port(), s.options.latency); err != nil {
		return err
	}
	s.closers = append(s.closers, s.proxy.close)
	return nil
}

func (s *stage) startBroker(ctx context.Context) (err error) {
	s.crew = crew.New(s.dir)
	s.crew.Heard = s.heard
	s.closers = append(s.closers, func() error { s.crew.KillAll("broker"); return nil })
	if s.nats, err = s.crew.Spawn("broker", setting{}); err != nil {
		return err
	}
	if s.where, err = s.crew.Await(ctx, s.nats); err != nil {
		return err
	}
	if s.broker, err = streams.Connect(s.where); err != nil {
		return err
	}
	s.closers = append(s.closers, func() error { s.broker.Close(); return nil })
	s.js, err = natsjs.New(s.broker.Conn, natsjs.WithPublishAsyncMaxPending(4000))
	return err
}

func (s *stage) close() (err error) {
	for _, close := range slices.Backward(s.closers) {
		err = errors.Join(err, close())
	}
	return err
}

// measureFlush finds out how long it takes to write a little through to the disk, on
// which figures with transactions depend.
func (s *stage) measureFlush(ctx context.Context) error {
	file, err := os.Create(filepath.Join(s.dir, "flush"))
	if err != nil {
		return err
	}
	defer file.Close()
	var times []float64
	for range 100 {
		begun := time.Now()
		if _, err := file.Write(make([]byte, 8192)); err != nil {
			return err
		}
		if err := file.Sync(); err != nil {
			return err
		}
		times = append(times, time.Since(begun).Seconds()*1000)
	}
	s.flush = fmt.Sprintf("%.2f ms", stats.Median(times))
	return ctx.Err()
}
