package main

import (
	"context"
	"crypto/tls"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/guard"
)

var guardCommand = command{
	name:    "guard",
	summary: "serve claims over HTTP, to programs in any language",
	help: `
Serve claims over HTTP: POST /claim before an effect, POST /settle/ID after it, and
whoever claims the same id again is told to skip it. It answers SafeAgent's clients.

  oncemill guard --listen 127.0.0.1:8402 --database-url 'postgres://app:secret@127.0.0.1:5432/app?sslmode=disable'

  curl -d '{"request_id":"order-7","action":"charge"}' http://127.0.0.1:8402/claim

All of it is described at /openapi.json. Any number of guards may run on one
database.

Without --tenants no request needs an API key, and it listens on loopback only.
oncemill guard tenants add makes the tenants file and its keys.

It runs until SIGTERM or SIGINT, then answers the requests that it has; a second
signal ends it at once. It does not start without database and schema, but once it
runs it answers 503 while they are away.`,
	prepare: prepareGuard,
}

// forEver is how long claims are kept unless it is said otherwise: a claim that is
// forgotten can be made again.
const forEver = 100 * 365 * 24 * time.Hour

// guardOptions are the flags of the command guard.
type guardOptions struct {
	database
	log                       logOptions
	listen                    *string
	tenants, auditTokenFile   *string
	tlsCert, tlsKey           *string
	legacy                    *bool
	lease, timeout            *time.Duration
	retention, eventRetention *time.Duration
	drainTimeout              *time.Duration
	connections, testCalls    *int
}

func prepareGuard(f *flags) action {
	o := guardOptions{
		listen:         f.text("listen", "ADDR", "where to serve, such as 127.0.0.1:8402; required"),
		database:       f.database(),
		tenants:        f.text("tenants", "FILE", "the tenants and their API keys: see oncemill guard tenants\n(default: no API key is needed, on loopback only)"),
		auditTokenFile: f.text("audit-token-file", "FILE", "holds the token of who may read everything and resolve what is in doubt,\nat least 32 characters (default: nobody may)"),
		legacy:         f.toggle("legacy", "serve clients from before settlement tokens: settling needs no token, and\nclaims and results are open to read"),
		tlsCert:        f.text("tls-cert", "FILE", "serve HTTPS with this certificate, in PEM; read again when it changes"),
		tlsKey:         f.text("tls-key", "FILE", "the certificate's key, in PEM"),
		lease:          f.duration("lease", 5*time.Minute, "how long a claim may stay unsettled before it is in doubt"),
		timeout:        f.duration("timeout", 10*time.Second, "how long a request may take, besides reading and writing it"),
		retention:      new(time.Duration),
		eventRetention: f.duration("event-retention", 90*24*time.Hour, "how long events are kept"),
		drainTimeout:   f.duration("drain-timeout", 15*time.Second, "how long requests may go on after SIGTERM"),
		connections:    f.count("connections", 16, "the most connections to the database"),
		testCalls:      f.count("test-calls", 1000, "how many calls of /claim/test an address has in an hour"),
		log:            f.log(),
	}
	*o.retention = forEver
	f.add("retention", "TIME", "how long settled claims are kept; an id can be claimed again after it\n(default: for ever)", func(value string) (err error) {
		if *o.retention, err = time.ParseDuration(value); err != nil || *o.retention <= 0 {
			return errors.New("want a time above 0 with its unit, such as 2160h")
		}
		return nil
	})
	return func(ctx context.Context, _, stderr io.Writer) error { return o.run(ctx, stderr) }
}

// run serves until ctx ends.
func (o guardOptions) run(ctx context.Context, stderr io.Writer) error {
	logger := o.log.logger(stderr)
	if err := o.check(); err != nil {
		return err
	}
	connector, err := o.connector()
	if err != nil {
		return err
	}
	db := sql.OpenDB(oncemill.PlanByIndex(connector))
	defer db.Close()
	db.SetMaxOpenConns(*o.connections)
	db.SetMaxIdleConns(*o.connections)
	handler, err := o.handler(db, logger)
	if err != nil {
		return err
	}
	certificates, err := o.certificates(logger)
	if err != nil {
		return err
	}
	if err := handler.Check(ctx); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *o.listen)
	if err != nil {
		return fmt.Errorf("--listen: %w (choose an address that is free on this machine)", err)
	}
	o.warn(logger)
	return o.serve(ctx, listener, handler, certificates, logger)
}

func (o guardOptions) check() error {
	if *o.listen == "" {
		return usagef("needs --listen: where to serve, such as 127.0.0.1:8402")
	}
	if err := checkAddressOf("--listen", *o.listen); err != nil {
		return err
	}
	if *o.tenants == "" && !isLoopback(*o.listen) {
		return usagef("--listen is not on loopback, and without --tenants nobody needs an API key: give --tenants (oncemill guard tenants add makes the file), or listen on 127.0.0.1")
	}
	if (*o.tlsCert == "") != (*o.tlsKey == "") {
		return usagef("--tls-cert and --tls-key go together")
	}
	return o.checkTimes()
}

func (o guardOptions) checkTimes() error {
	switch {
	case *o.lease < oncemill.LeastLease || *o.lease > oncemill.MostLease:
		return usagef("--lease is %v: must be from 100ms to 720h", *o.lease)
	case *o.retention < oncemill.LeastRetention:
		return usagef("--retention is %v: must be at least 10m", *o.retention)
	case *o.eventRetention < oncemill.LeastRetention:
		return usagef("--event-retention is %v: must be at least 10m", *o.eventRetention)
	}
	return nil
}

// isLoopback reports whether only this machine reaches an address.
func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (o guardOptions) handler(db *sql.DB, logger *slog.Logger) (*guard.Handler, error) {
	h := &guard.Handler{
		Inbox: &oncemill.Inbox{
			DB: db, Schema: *o.schema, Logger: logger, ClaimBatch: 64, Lease: *o.lease, DrainTimeout: 5 * time.Second,
			Retention: *o.retention, EventRetention: *o.eventRetention,
		},
		Legacy: *o.legacy, LocalOnly: *o.tenants == "", Lease: *o.lease, Timeout: *o.timeout, TestCalls: *o.testCalls, Logger: logger,
	}
	if *o.tenants != "" {
		h.Tenants = &guard.Tenants{File: *o.tenants, Logger: logger}
		switch err := h.Tenants.Check(); {
		case errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("--tenants: %w (oncemill guard tenants add NAME --tenants %s makes it)", err, *o.tenants)
		case err != nil:
			return nil, fmt.Errorf("--tenants: %w", err)
		}
	}
	if *o.auditTokenFile != "" {
		text, err := os.ReadFile(*o.auditTokenFile)
		if err != nil {
			return nil, fmt.Errorf("--audit-token-file: %w", err)
		}
		if h.AuditToken = strings.TrimSpace(string(text)); len(h.AuditToken) < 32 {
			return nil, fmt.Errorf("--audit-token-file: the token has %d characters: write at least 32 random ones into the file, such as those of `openssl rand -hex 32`", len(h.AuditToken))
		}
	}
	return h, nil
}

// warn says what may be meant so, and may be an oversight.
func (o guardOptions) warn(logger *slog.Logger) {
	switch {
	case *o.legacy && *o.tenants != "":
		logger.Warn("--legacy: whoever has an API key of a tenant settles any claim of that tenant without a token, and reads its results")
	case *o.legacy:
		logger.Warn("--legacy: whoever reaches this guard settles any claim without a token, and reads all results")
	}
	if *o.tenants != "" {
		warnOfTenants(*o.tenants, logger)
	}
	if *o.tenants != "" && *o.tlsCert == "" && !isLoopback(*o.listen) {
		logger.Warn("API keys travel in the clear: give --tls-cert and --tls-key, unless something in front of this guard does TLS")
	}
}

// warnOfTenants says so if nobody can claim. It was seen before that the file can be used.
func warnOfTenants(file string, logger *slog.Logger) {
	tenants, err := guard.ReadTenants(file)
	if err != nil {
		return
	}
	valid := 0
	for _, tenant := range tenants {
		valid += validKeys(tenant.Keys)
	}
	switch {
	case len(tenants) == 0:
		logger.Warn("--tenants: there is no tenant in the file, so nobody can claim: oncemill guard tenants add makes one", "file", file)
	case valid == 0:
		logger.Warn("--tenants: no tenant has a valid API key, so nobody can claim: oncemill guard tenants rotate gives it one", "file", file)
	}
}

// How long each phase of a request may take. An export extends its own.
const (
	headerTimeout = 5 * time.Second
	readTimeout   = 15 * time.Second
	idleTimeout   = 2 * time.Minute
	mostHeader    = 16 << 10
)

func (o guardOptions) serve(ctx context.Context, listener net.Listener, handler *guard.Handler, certificates *certificates, logger *slog.Logger) error {
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout,
		WriteTimeout: readTimeout + *o.timeout + headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: mostHeader,
		ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug), // what strangers send is no error of ours
	}
	served := make(chan error, 1)
	go func() {
		if certificates == nil {
			served <- server.Serve(listener)
			return
		}
		server.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: certificates.get}
		served <- server.ServeTLS(listener, "", "")
	}()
	logger.Info("guard starts", "listen", listener.Addr().String(), "tls", certificates != nil, "tenants", *o.tenants != "", "legacy", *o.legacy)
	defer tellSystemd(ctx, logger)()
	defer logger.Info("guard has stopped")

	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ran := make(chan error, 1)
	go func() { ran <- handler.Run(running) }()
	var err error
	select {
	case <-ctx.Done():
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), *o.drainTimeout)
		defer cancel()
		if failed := server.Shutdown(drain); failed != nil {
			logger.Warn("guard: requests were still under way after --drain-timeout")
		}
	case err = <-ran:
		ran <- nil
	case err = <-served:
		served <- http.ErrServerClosed
	}
	server.Close()
	stop()
	if failed := <-served; !errors.Is(failed, http.ErrServerClosed) {
		err = errors.Join(err, failed)
	}
	return errors.Join(err, <-ran)
}
