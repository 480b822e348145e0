package natsserver

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/oncemill/oncemill/testcontainers/internal/process"
)

// readyLimit is how long a server may take until it accepts connections.
const readyLimit = 30 * time.Second

// An Embedded is a JetStream server that runs inside this process.
type Embedded struct {
	server *server.Server
	dir    string
	files  *process.Process // runs nothing; it removes dir if this process is killed
}

// Embed starts a JetStream server inside this process, on a free port of
// 127.0.0.1, with its files in a temporary directory. Close ends it. It cannot
// be killed or frozen; Start gives one that can.
func Embed() (*Embedded, error) {
	dir, err := os.MkdirTemp("", "oncemill-nats-")
	if err != nil {
		return nil, err
	}
	e := &Embedded{dir: dir}
	if e.files, err = process.Prepare(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("start NATS: %w", err), os.RemoveAll(dir))
	}
	if err := e.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start NATS: %w", err), e.Close())
	}
	return e, nil
}

func (e *Embedded) start() (err error) {
	e.server, err = server.NewServer(&server.Options{
		Host:      "127.0.0.1",
		Port:      server.RANDOM_PORT,
		JetStream: true,
		StoreDir:  e.dir,
		NoLog:     true,
		NoSigs:    true,
	})
	if err != nil {
		return err
	}
	e.server.Start()
	if !e.server.ReadyForConnections(readyLimit) {
		return errors.New("the server does not accept connections")
	}
	if !e.server.JetStreamEnabled() {
		return fmt.Errorf("JetStream does not start with its files in %s", e.dir)
	}
	return nil
}

// URL returns the address for clients.
func (e *Embedded) URL() string { return e.server.ClientURL() }

// Close ends the server and removes its files.
func (e *Embedded) Close() error {
	if e.server != nil {
		e.server.Shutdown()
		e.server.WaitForShutdown()
	}
	return errors.Join(e.files.Close(), os.RemoveAll(e.dir))
}
