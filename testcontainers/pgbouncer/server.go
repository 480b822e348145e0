package pgbouncer

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	_ "github.com/lib/pq" // asks the pooler whether it is ready

	"github.com/oncemill/oncemill/testcontainers/internal/process"
)

// Options say how to run a PgBouncer.
type Options struct {
	// Upstream is the URL of a database on the Postgres server, with user and password,
	// who may read pg_shadow: other users log in with what it says. Required.
	Upstream string

	// Bin is the program. "" means the one that Find finds.
	Bin string

	// Settings are put into pgbouncer.ini. Where they say nothing PgBouncer's defaults
	// hold, but for those of documentation and tests: see Settings.
	Settings map[string]string
}

// Settings returns what Oncemill needs of pgbouncer.ini, and docs/operating.md says.
func Settings() map[string]string {
	return map[string]string{
		"pool_mode":                 "transaction",
		"max_prepared_statements":   "200",
		"ignore_startup_parameters": "extra_float_digits",
	}
}

// A Server is a PgBouncer that runs as a child process.
type Server struct {
	dir      string
	port     int
	upstream *url.URL
	process  *process.Process
}

const startLimit = time.Minute

// Start starts a PgBouncer and returns when the Postgres behind it answers through it. ctx
// bounds the start, not its life; Close ends that.
func Start(ctx context.Context, options Options) (*Server, error) {
	s := new(Server)
	if err := s.start(ctx, options); err != nil {
		return nil, errors.Join(fmt.Errorf("start PgBouncer: %w", err), s.Close())
	}
	return s, nil
}

func (s *Server) start(ctx context.Context, options Options) (err error) {
	if s.upstream, err = url.Parse(options.Upstream); err != nil || s.upstream.Host == "" || s.upstream.User == nil {
		return errors.New("Options.Upstream must be a URL, postgres://user:password@host:port/database")
	}
	if options.Bin == "" {
		if options.Bin, err = Find(ctx); err != nil {
			return err
		}
	}
	var user *syscall.Credential
	if os.Geteuid() == 0 {
		if user, err = process.Nobody(); err != nil {
			return err
		}
	}
	if s.dir, err = os.MkdirTemp("", "oncemill-pgbouncer-"); err != nil {
		return err
	}
	if s.process, err = process.Prepare(s.dir); err != nil {
		return err
	}
	if s.port, err = process.FreePort(); err != nil {
		return err
	}
	if err := s.configure(options.Settings, user); err != nil {
		return err
	}
	err = s.process.Start(process.Command{
		Path: options.Bin,
		Args: []string{s.file("pgbouncer.ini")},
		Env:  []string{"PATH=/usr/sbin:/usr/bin:/bin", "LC_ALL=C", "HOME=/"},
		Log:  s.file("log"),
		User: user,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if err := s.ready(ctx); err != nil {
		return fmt.Errorf("%w%s", err, process.LogTail(s.file("log")))
	}
	return nil
}

func (s *Server) file(name string) string { return filepath.Join(s.dir, name) }

// configure writes the files, for the user that it runs as.
func (s *Server) configure(more map[string]string, user *syscall.Credential) error {
	settings := Settings()
	for name, value := range map[string]string{
		"listen_addr":     "127.0.0.1",
		"listen_port":     fmt.Sprint(s.port),
		"unix_socket_dir": "",
		"auth_type":       "scram-sha-256",
		"auth_file":       s.file("users"),
		"auth_user":       s.upstream.User.Username(),
		"auth_query":      "SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename = $1",
		"max_client_conn": "2000",
		// There are many databases, each for a moment.
		"autodb_idle_timeout": "10",
		"server_idle_timeout": "10",
	} {
		settings[name] = value
	}
	for name, value := range more {
		settings[name] = value
	}
	host, port := s.upstream.Hostname(), s.upstream.Port()
	if port == "" {
		port = "5432"
	}
	var text strings.Builder
	fmt.Fprintf(&text, "[databases]\n* = host=%s port=%s\n[pgbouncer]\n", host, port)
	for name, value := range settings {
		if strings.ContainsAny(name+value, "\r\n") {
			return fmt.Errorf("the setting %q has a line break in it", name)
		}
		fmt.Fprintf(&text, "%s = %s\n", name, value)
	}
	password, _ := s.upstream.User.Password()
	quote := func(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
	files := map[string]string{
		"pgbouncer.ini": text.String(),
		"users":         quote(s.upstream.User.Username()) + " " + quote(password) + "\n",
		"log":           "",
	}
	for name, text := range files {
		if err := os.WriteFile(s.file(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	if user == nil {
		return nil
	}
	for _, file := range []string{s.dir, s.file("pgbouncer.ini"), s.file("users"), s.file("log")} {
		if err := os.Chown(file, int(user.Uid), int(user.Gid)); err != nil {
			return err
		}
	}
	return nil
}

// ready waits until Postgres answers through it.
func (s *Server) ready(ctx context.Context) error {
	db, err := sql.Open("postgres", s.URL(strings.TrimPrefix(s.upstream.Path, "/")))
	if err != nil {
		return err
	}
	defer db.Close()
	return s.process.Ready(ctx, 10*time.Millisecond, db.PingContext)
}

// Addr returns where it listens, as host:port.
func (s *Server) Addr() string { return fmt.Sprintf("127.0.0.1:%d", s.port) }

// URL returns the connection URL of a database through it, for the user of
// Options.Upstream.
func (s *Server) URL(database string) string {
	u := url.URL{Scheme: "postgres", User: s.upstream.User, Host: s.Addr(), Path: "/" + database, RawQuery: "sslmode=disable"}
	return u.String()
}

// Log returns what it has written to its log.
func (s *Server) Log() (string, error) {
	text, err := os.ReadFile(s.file("log"))
	return string(text), err
}

// Close ends it and removes its files. Calling it again does nothing.
func (s *Server) Close() error {
	var err error
	if s.process != nil {
		err = s.process.Close() // SIGTERM would wait for clients
	}
	if s.dir != "" {
		err = errors.Join(err, os.RemoveAll(s.dir))
	}
	return err
}
