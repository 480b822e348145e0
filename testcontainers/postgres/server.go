package postgres

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	_ "github.com/lib/pq" // asks the server whether it is ready

	"github.com/oncemill/oncemill/testcontainers/internal/process"
)

// Options say how to run a server. The zero value is a server whose data
// survive a crash, on a free port, in a temporary directory.
type Options struct {
	// Bin is the directory of initdb and postgres. "" means those that Find
	// finds, or else Fetch downloads.
	Bin string

	// Dir is where the data and the log live. It is made if it is not there,
	// and data in it from an earlier server are used again. "" means a
	// temporary directory, which Close removes.
	Dir string

	// Port is the TCP port on 127.0.0.1. 0 means a free one, which the server
	// keeps when it is started again.
	Port int

	// Settings are put into postgresql.conf, such as "wal_level": "logical".
	// Where they say nothing Postgres's defaults hold, but for max_connections,
	// which is 300.
	Settings map[string]string

	// Volatile makes the server faster by not writing through to the disk
	// (fsync=off) and by having its temporary directory in memory, if there are
	// 2 GiB free in /dev/shm: a database is then created in 20 ms, not 150. A
	// committed transaction survives Kill all the same, but not the machine.
	Volatile bool

	// Progress is where a line is written for each step of a download. nil
	// means os.Stderr.
	Progress io.Writer
}

// A Server is a Postgres server that runs as a child process. Its methods may be
// called from several goroutines, but starting and stopping it is up to one.
type Server struct {
	bin       string
	dir       string
	temporary bool
	volatile  bool
	port      int
	password  string
	user      *syscall.Credential // whom it runs as; nil: the current user
	process   *process.Process
	pid       int // of the process that was started last
}

// How long the steps may take on a slow or busy machine.
const (
	startLimit = 2 * time.Minute // with the recovery after a crash
	stopLimit  = 30 * time.Second
)

// Locate returns the directory of initdb and postgres: what Find finds, or else
// Fetch downloads. Steps of a download are written to progress; nil means
// os.Stderr.
func Locate(ctx context.Context, progress io.Writer) (bin string, err error) {
	bin, err = Find(ctx)
	if !errors.Is(err, ErrNotFound) {
		return bin, err
	}
	if progress == nil {
		progress = os.Stderr
	}
	bin, fetchErr := Fetch(ctx, progress)
	if fetchErr != nil {
		return "", fmt.Errorf("%w; %w", fetchErr, err)
	}
	return bin, nil
}

// Start starts a server and returns when it accepts connections. ctx bounds the
// start, not the server's life; Close ends that.
func Start(ctx context.Context, options Options) (*Server, error) {
	s := newServer(options)
	if err := s.create(ctx, options); err != nil {
		return nil, errors.Join(fmt.Errorf("start Postgres: %w", err), s.Close())
	}
	if err := s.launch(ctx, options.Port == 0); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func newServer(options Options) *Server {
	return &Server{
		bin: options.Bin, dir: options.Dir, temporary: options.Dir == "",
		port: options.Port, volatile: options.Volatile,
	}
}

// create makes everything that a server needs, up to starting it.
func (s *Server) create(ctx context.Context, options Options) error {
	if err := s.prepare(ctx, options); err != nil {
		return err
	}
	if err := s.initialize(ctx); err != nil {
		return err
	}
	return s.configure(options)
}

// prepare makes what a server needs beside its data.
func (s *Server) prepare(ctx context.Context, options Options) (err error) {
	if s.bin == "" {
		if s.bin, err = Locate(ctx, options.Progress); err != nil {
			return err
		}
	}
	if s.user, err = serverUser(); err != nil {
		return err
	}
	if err := s.makeDir(); err != nil {
		return err
	}
	remove := ""
	if s.temporary {
		remove = s.dir
	}
	s.process, err = process.Prepare(remove)
	return err
}

// makeDir makes the server's directory, in the possession of the user that it
// runs as.
func (s *Server) makeDir() (err error) {
	if s.temporary {
		s.dir, err = os.MkdirTemp(process.TemporaryParent(s.volatile), "oncemill-postgres-")
	} else if s.dir, err = filepath.Abs(s.dir); err == nil {
		err = os.MkdirAll(s.dir, 0o700)
	}
	if err != nil {
		return err
	}
	if err := s.give(s.dir); err != nil {
		return err
	}
	return reachable(s.dir, s.user)
}

// give makes the server's user the owner of a file.
func (s *Server) give(file string) error {
	if s.user == nil {
		return nil
	}
	return os.Chown(file, int(s.user.Uid), int(s.user.Gid))
}

func (s *Server) data() string    { return filepath.Join(s.dir, "data") }
func (s *Server) logFile() string { return filepath.Join(s.dir, "log") }

// initialize creates the data directory, unless there is one.
func (s *Server) initialize(ctx context.Context) error {
	file := filepath.Join(s.dir, "password")
	if _, err := os.Stat(filepath.Join(s.data(), "PG_VERSION")); err == nil {
		password, err := os.ReadFile(file)
		s.password = string(password)
		return err
	}
	// Without a password every user of the machine could use the server, and
	// through it the account that it runs under.
	s.password = rand.Text()
	if err := os.WriteFile(file, []byte(s.password), 0o600); err != nil {
		return err
	}
	if err := s.give(file); err != nil {
		return err
	}
	err := s.process.Run(ctx, process.Command{
		Path: filepath.Join(s.bin, "initdb"),
		Args: []string{"-D", s.data(), "--no-sync", "--locale=C", "--encoding=UTF8",
			"--username=postgres", "--auth=scram-sha-256", "--pwfile=" + file},
		Env:  environment(),
		Log:  s.logFile(),
		User: s.user,
	})
	if err != nil {
		return fmt.Errorf("initdb: %w%s", err, process.LogTail(s.logFile()))
	}
	return nil
}

// configure writes the settings.
func (s *Server) configure(options Options) error {
	settings := map[string]string{
		"max_connections": "300",
		// In the data directory, so that nothing is left in /dev/shm when the
		// server is killed.
		"dynamic_shared_memory_type": "mmap",
	}
	if options.Volatile {
		settings["fsync"] = "off"
		settings["full_page_writes"] = "off"
		settings["max_wal_size"] = "256MB" // it may be memory
	}
	for name, value := range options.Settings {
		settings[name] = value
	}
	var text strings.Builder
	for name, value := range settings {
		if strings.ContainsAny(name+value, "\r\n") {
			return fmt.Errorf("the setting %q has a line break in it", name)
		}
		fmt.Fprintf(&text, "%s = '%s'\n", name, strings.NewReplacer("'", "''", `\`, `\\`).Replace(value))
	}
	return s.write("postgresql.conf", text.String())
}

// launch starts the process on its port. With anyPort it looks for another one
// if somebody was faster in taking it.
func (s *Server) launch(ctx context.Context, anyPort bool) (err error) {
	for range 5 {
		if anyPort {
			if s.port, err = process.FreePort(); err != nil {
				return err
			}
		}
		err = s.Start(ctx)
		if err == nil || !anyPort || !strings.Contains(err.Error(), "could not create any TCP/IP sockets") {
			return err
		}
	}
	return err
}

// Start starts the server again after Stop or Kill, on the same port and the
// same data, and returns when it accepts connections.
func (s *Server) Start(ctx context.Context) error {
	err := s.process.Start(process.Command{
		Path: filepath.Join(s.bin, "postgres"),
		Args: []string{"-D", s.data(), "-p", fmt.Sprint(s.port),
			"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="},
		Env:  environment(),
		Log:  s.logFile(),
		User: s.user,
		Quit: syscall.SIGQUIT,
	})
	if err != nil {
		return fmt.Errorf("start Postgres: %w", err)
	}
	s.pid = s.process.PID()
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if err := s.ready(ctx); err != nil {
		return errors.Join(fmt.Errorf("start Postgres: %w%s", err, process.LogTail(s.logFile())), s.process.Kill())
	}
	return nil
}

// ready waits until the server accepts connections.
func (s *Server) ready(ctx context.Context) error {
	db, err := sql.Open("postgres", s.URL("postgres"))
	if err != nil {
		return err
	}
	defer db.Close()
	return s.process.Ready(ctx, 10*time.Millisecond, db.PingContext)
}

// URL returns the connection URL of a database, for a superuser. "" means the
// database "postgres", which every server has.
func (s *Server) URL(database string) string {
	if database == "" {
		database = "postgres"
	}
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword("postgres", s.password),
		Host:     fmt.Sprintf("127.0.0.1:%d", s.port),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Port returns the server's TCP port on 127.0.0.1.
func (s *Server) Port() int { return s.port }

// Running tells whether the server's process is there, frozen or not.
func (s *Server) Running() bool { return s.process.Running() }

// Log returns what the server has written to its log since it was created.
func (s *Server) Log() (string, error) {
	text, err := os.ReadFile(s.logFile())
	return string(text), err
}

// Stop shuts the server down: open transactions are rolled back and connections
// closed. The data stay. It does nothing if the server is not running.
func (s *Server) Stop() error {
	_ = s.process.Thaw() // a frozen process cannot shut down
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT} {
		err := s.process.Signal(signal)
		if errors.Is(err, process.ErrNotRunning) {
			return nil
		}
		if err != nil {
			return err
		}
		if s.process.Wait(stopLimit) {
			return nil
		}
	}
	return s.process.Kill()
}

// Restart stops the server and starts it again, on the same port and the same
// data.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Stop(); err != nil {
		return err
	}
	return s.Start(ctx)
}

// Kill ends all of the server's processes with SIGKILL, as a crash of the
// machine would, and returns when they are gone. Start recovers what was
// committed.
func (s *Server) Kill() error { return s.process.Kill() }

// Freeze stops all of the server's processes with SIGSTOP: connections stay open
// and new ones are taken by the kernel, but nothing answers, until Thaw.
func (s *Server) Freeze() error { return s.process.Freeze() }

// Thaw lets a frozen server go on.
func (s *Server) Thaw() error { return s.process.Thaw() }

// Close stops the server, at once and without a checkpoint, and removes its
// directory if that is a temporary one. Calling it again does nothing.
func (s *Server) Close() error {
	var err error
	if s.process != nil {
		_ = s.process.Thaw()
		if s.process.Signal(syscall.SIGQUIT) == nil {
			s.process.Wait(5 * time.Second)
		}
		err = s.process.Close()
	}
	if s.pid != 0 && err == nil {
		removeSegment(filepath.Join(s.data(), "postmaster.pid"), s.pid)
	}
	if s.temporary && s.dir != "" {
		err = errors.Join(err, os.RemoveAll(s.dir))
	}
	return err
}
