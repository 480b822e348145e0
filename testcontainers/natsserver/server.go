package natsserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/oncemill/oncemill/testcontainers/internal/cache"
	"github.com/oncemill/oncemill/testcontainers/internal/process"
)

// Options say how to run a server. The zero value is a JetStream server on a
// free port, with its files in a temporary directory.
type Options struct {
	// Dir is where the server's files live. It is made if it is not there, and
	// streams in it from an earlier server are used again. "" means a temporary
	// directory, which Close removes.
	Dir string

	// Port is the TCP port on 127.0.0.1. 0 means a free one, which the server
	// keeps when it is started again.
	Port int

	// Config is added to the server's configuration file, in nats-server's
	// format, such as "max_payload: 64KB". A block jetstream in it is the
	// server's: "jetstream { sync_interval: always }" has it write through to the
	// disk before it acknowledges anything.
	Config string

	// Volatile has the server's temporary directory in memory, if there are 2 GiB
	// free in /dev/shm. What was acknowledged survives Kill all the same, but not
	// the machine.
	Volatile bool
}

// A Server is a NATS server with JetStream that runs as a child process. Its
// methods may be called from several goroutines, but starting and stopping it is
// up to one.
type Server struct {
	binary    string
	dir       string
	temporary bool
	port      int
	process   *process.Process
}

// stopLimit is how long an orderly shutdown may take.
const stopLimit = 30 * time.Second

// Start starts a server and returns when it accepts connections. ctx bounds the
// start, not the server's life; Close ends that. It needs the go command.
func Start(ctx context.Context, options Options) (*Server, error) {
	s := &Server{dir: options.Dir, temporary: options.Dir == "", port: options.Port}
	if err := s.create(ctx, options.Volatile); err != nil {
		return nil, errors.Join(fmt.Errorf("start NATS: %w", err), s.Close())
	}
	if err := s.launch(ctx, options); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) create(ctx context.Context, volatile bool) (err error) {
	if s.binary, err = build(ctx); err != nil {
		return err
	}
	remove := ""
	if s.temporary {
		s.dir, err = os.MkdirTemp(process.TemporaryParent(volatile), "oncemill-nats-")
		remove = s.dir
	} else if s.dir, err = filepath.Abs(s.dir); err == nil {
		err = os.MkdirAll(s.dir, 0o700)
	}
	if err != nil {
		return err
	}
	s.process, err = process.Prepare(remove)
	return err
}

// building keeps the goroutines of this process from building at once; a lock on
// the file does so for several processes.
var building sync.Mutex

// build makes the program that the child process runs, and returns its path. A
// program of its own, and not the test's run once more, can be killed without
// the test having to prepare anything in TestMain, and runs without the race
// detector. From the second time on it takes as long as go needs to see that
// nothing has changed.
func build(ctx context.Context) (binary string, err error) {
	building.Lock()
	defer building.Unlock()
	binary, unlock, err := cache.Prepare("natsserver")
	if err != nil {
		return "", err
	}
	defer unlock()
	command := exec.CommandContext(ctx, "go", "build", "-o", binary,
		"github.com/oncemill/oncemill/testcontainers/cmd/natsserver")
	if output, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the server: %w\n%s", err, output)
	}
	return binary, nil
}

// launch starts the process on its port. Where any port will do it looks for
// another one if somebody was faster in taking it.
func (s *Server) launch(ctx context.Context, options Options) (err error) {
	for range 5 {
		if options.Port == 0 {
			if s.port, err = process.FreePort(); err != nil {
				return err
			}
		}
		if err = s.configure(options.Config); err != nil {
			return err
		}
		err = s.Start(ctx)
		if err == nil || options.Port != 0 || !strings.Contains(err.Error(), "address already in use") {
			return err
		}
	}
	return err
}

func (s *Server) configFile() string { return filepath.Join(s.dir, "nats.conf") }
func (s *Server) pidFile() string    { return filepath.Join(s.dir, "pid") }
func (s *Server) logFile() string    { return filepath.Join(s.dir, "log") }

func (s *Server) configure(more string) error {
	// The directory is not named in the block jetstream, for one in more replaces
	// that as a whole.
	text := fmt.Sprintf("listen: \"127.0.0.1:%d\"\npid_file: %q\nstore_dir: %q\njetstream {}\n%s\n",
		s.port, s.pidFile(), s.dir, more)
	return os.WriteFile(s.configFile(), []byte(text), 0o600)
}

// Start starts the server again after Stop or Kill, on the same port and the
// same streams, and returns when it accepts connections.
func (s *Server) Start(ctx context.Context) error {
	err := s.process.Start(process.Command{
		Path: s.binary,
		Args: []string{s.configFile()},
		Env:  os.Environ(),
		Dir:  s.dir,
		Log:  s.logFile(),
	})
	if err != nil {
		return fmt.Errorf("start NATS: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	if err := s.process.Ready(ctx, 10*time.Millisecond, s.greets); err != nil {
		return errors.Join(fmt.Errorf("start NATS: %w%s", err, process.LogTail(s.logFile())), s.process.Kill())
	}
	return nil
}

// greets tells whether the server sends its greeting, and says there that it has
// JetStream.
func (s *Server) greets(ctx context.Context) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", s.port))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	if !strings.HasPrefix(line, "INFO ") || !strings.Contains(line, `"jetstream":true`) {
		return fmt.Errorf("the server says %q", line)
	}
	return nil
}

// URL returns the address for clients.
func (s *Server) URL() string { return fmt.Sprintf("nats://127.0.0.1:%d", s.port) }

// Port returns the server's TCP port on 127.0.0.1.
func (s *Server) Port() int { return s.port }

// Dir returns the directory of the server's files.
func (s *Server) Dir() string { return s.dir }

// Running tells whether the server's process is there, frozen or not.
func (s *Server) Running() bool { return s.process.Running() }

// Log returns what the server has written to its log since it was created.
func (s *Server) Log() (string, error) {
	text, err := os.ReadFile(s.logFile())
	return string(text), err
}

// Stop shuts the server down. The streams stay. It does nothing if the server is
// not running.
func (s *Server) Stop() error { return s.process.Stop(stopLimit) }

// Restart stops the server and starts it again, on the same port and the same
// streams.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Stop(); err != nil {
		return err
	}
	return s.Start(ctx)
}

// Kill ends the server with SIGKILL and returns when it is gone.
func (s *Server) Kill() error { return s.process.Kill() }

// Freeze stops the server with SIGSTOP: connections stay open and new ones are
// taken by the kernel, but nothing answers, until Thaw.
func (s *Server) Freeze() error { return s.process.Freeze() }

// Thaw lets a frozen server go on.
func (s *Server) Thaw() error { return s.process.Thaw() }

// KeepRunning starts the server again whenever it has ended, whoever ended it,
// until ctx ends; it returns nil then. Do not start or stop the server meanwhile.
func (s *Server) KeepRunning(ctx context.Context) error {
	for ctx.Err() == nil {
		if s.process.Wait(20 * time.Millisecond) {
			if err := s.Start(ctx); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
	return nil
}

// KillCommand returns a command that kills the server with SIGKILL from outside,
// for test suites that want such a command. While KeepRunning runs it amounts to
// a restart, and can be used many times.
func (s *Server) KillCommand() []string { return process.KillCommand(s.pidFile()) }

// Close kills the server and removes its directory if that is a temporary one.
// Calling it again does nothing.
func (s *Server) Close() error {
	var err error
	if s.process != nil {
		err = s.process.Close()
	}
	if s.temporary && s.dir != "" {
		err = errors.Join(err, os.RemoveAll(s.dir))
	}
	return err
}
