package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/lib/pq"

	"database/sql"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/guard"
)

// serveGuard is the guard over HTTP.
func serveGuard(ctx context.Context, s setting) error {
	connector, err := pq.NewConnector(s.Postgres)
	if err != nil {
		return err
	}
	db := sql.OpenDB(oncemill.PlanByIndex(connector))
	defer db.Close()
	db.SetMaxOpenConns(16)
	db.SetMaxIdleConns(16)
	handler := &guard.Handler{
		Inbox:   &oncemill.Inbox{DB: db, ClaimBatch: batchSize, IdleTimeout: idleTimeout, DrainTimeout: 2 * time.Second},
		Timeout: 3 * time.Second,
	}
	if err := handler.Check(ctx); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", s.Listen)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler}
	ended := make(chan error, 2)
	go func() { ended <- server.Serve(listener) }()
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { ended <- handler.Run(running) }()
	crew.Say("running")
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	limited, stop := context.WithTimeout(context.Background(), 4*time.Second)
	defer stop()
	err = server.Shutdown(limited)
	for range 2 {
		if end := <-ended; !errors.Is(end, http.ErrServerClosed) {
			err = errors.Join(err, end)
		}
	}
	return err
}
