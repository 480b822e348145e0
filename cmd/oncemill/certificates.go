package main

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certificates is the certificate of a server, read again when its file has changed, so
// that it can be renewed without a restart.
type certificates struct {
	certFile, keyFile string
	logger            *slog.Logger

	mu      sync.Mutex
	looked  time.Time
	changed time.Time
	now     *tls.Certificate
}

// lookEvery is how often the file is looked at, at most.
const lookEvery = 10 * time.Second

// certificates returns nil if there is to be no TLS.
func (o guardOptions) certificates(logger *slog.Logger) (*certificates, error) {
	if *o.tlsCert == "" {
		return nil, nil
	}
	c := &certificates{certFile: *o.tlsCert, keyFile: *o.tlsKey, logger: logger}
	if err := c.load(); err != nil {
		return nil, fmt.Errorf("--tls-cert and --tls-key: %w", err)
	}
	return c, nil
}

func (c *certificates) load() error {
	info, err := os.Stat(c.certFile)
	if err != nil {
		return err
	}
	if c.now != nil && info.ModTime().Equal(c.changed) {
		return nil
	}
	certificate, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return err
	}
	if c.now != nil {
		c.logger.Info("guard: the certificate was read again")
	}
	c.now, c.changed = &certificate, info.ModTime()
	return nil
}

// get is for tls.Config. A certificate that cannot be read leaves the one before.
func (c *certificates) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) >= lookEvery {
		c.looked = time.Now()
		if err := c.load(); err != nil {
			c.logger.Error("guard: the certificate could not be read again", "error", err)
		}
	}
	return c.now, nil
}
