package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/testcontainers/postgres"
)

const (
	startLimit = time.Minute      // for a server to answer
	stopLimit  = 15 * time.Second // for it to end when asked to
)

// A stage has the servers and their files.
type stage struct {
	dir     string
	options options
	server  *postgres.Server
	address string // of the database
	db      *sql.DB
	closers []func() error // last first
}

// start starts the contenders.
func (s *stage) start(ctx context.Context) (all []contender, err error) {
	if err := s.startPostgres(ctx); err != nil {
		return nil, err
	}
	for _, start := range []func(context.Context) (contender, error){s.startGuard, s.startSafeAgent, s.startLimit} {
		c, err := start(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

func (s *stage) startPostgres(ctx context.Context) (err error) {
	if s.server, err = crew.StartPostgres(ctx, os.Stdout, "the contenders"); err != nil {
		return err
	}
	s.closers = append(s.closers, s.server.Close)
	if s.address, err = crew.CreateDatabase(ctx, s.server, "bench"); err != nil {
		return err
	}
	connector, err := pq.NewConnector(s.address)
	if err != nil {
		return err
	}
	s.db = sql.OpenDB(oncemill.PlanByIndex(connector))
	s.closers = append(s.closers, s.db.Close)
	s.db.SetMaxIdleConns(limitLanes + 1) // one to count with
	return oncemill.Migrate(ctx, s.db, "")
}

// launch starts a server, and returns when it answers at addr.
func (s *stage) launch(ctx context.Context, name string, cmd *exec.Cmd, addr string) error {
	log, err := os.Create(filepath.Join(s.dir, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close() // the server has it
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // the log says why
		close(ended)
	}()
	s.closers = append(s.closers, func() error { return end(name, cmd, ended) })
	ctx, stop := context.WithTimeout(ctx, startLimit)
	defer stop()
	for !answers(ctx, "http://"+addr+"/health") {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w%s", name, ctx.Err(), logOf(log.Name()))
		case <-ended:
			return fmt.Errorf("%s has ended%s", name, logOf(log.Name()))
		}
	}
	return nil
}

func answers(ctx context.Context, address string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// end ends a server as an operator would, and if it does not heed that, by force.
func end(name string, cmd *exec.Cmd, ended <-chan struct{}) error {
	_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-ended:
		return nil
	case <-time.After(stopLimit):
		_ = cmd.Process.Kill()
		<-ended
		return fmt.Errorf("%s did not end within %v", name, stopLimit)
	}
}

func (s *stage) close() (err error) {
	for i := len(s.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, s.closers[i]())
	}
	return err
}

// logOf is the end of a log, to be shown with an error.
func logOf(file string) string {
	text, err := os.ReadFile(file)
	if err != nil || len(text) == 0 {
		return ""
	}
	return "; it says:\n" + string(text[max(0, len(text)-2000):])
}

// freePort returns an address that nobody listens at.
func freePort() (addr, port string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	defer l.Close()
	_, port, err = net.SplitHostPort(l.Addr().String())
	return l.Addr().String(), port, err
}
