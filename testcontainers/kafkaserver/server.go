package kafkaserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/oncemill/oncemill/testcontainers/internal/process"
)

// Options say how to run a server. The zero value is a server on a free port,
// with its files in a temporary directory.
type Options struct {
	// Java is the path of the program java. "" means the one that FindJava
	// finds.
	Java string

	// Dir is where the server's files live. It is made if it is not there, and
	// topics in it from an earlier server are used again. "" means a temporary
	// directory, which Close removes.
	Dir string

	// Port is the TCP port on 127.0.0.1. 0 means a free one, which the server
	// keeps when it is started again. The controller takes another free port.
	Port int

	// Config is added to the server's server.properties, such as
	// "message.max.bytes=65536". Its lines hold where they set again what is
	// set already.
	Config string

	// Progress is where a line is written for each step of a download. nil
	// means os.Stderr.
	Progress io.Writer
}

// A Server is a Kafka server that runs as a child process. Its methods may be
// called from several goroutines, but starting and stopping it is up to one.
type Server struct {
	java       string
	jars       string
	dir        string
	temporary  bool
	port       int
	controller int // its port
	process    *process.Process
}

// How long the steps may take on a slow or busy machine.
const (
	readyLimit = 2 * time.Minute // with the recovery after a crash
	stopLimit  = 30 * time.Second
)

// Start starts a server and returns when it answers clients. ctx bounds the
// start, not the server's life; Close ends that. Without Java the error wraps
// ErrNoJava.
func Start(ctx context.Context, options Options) (*Server, error) {
	s := &Server{java: options.Java, dir: options.Dir, temporary: options.Dir == "", port: options.Port}
	if err := s.create(ctx, options.Progress); err != nil {
		return nil, errors.Join(fmt.Errorf("start Kafka: %w", err), s.Close())
	}
	if err := s.launch(ctx, options); err != nil {
		return nil, errors.Join(fmt.Errorf("start Kafka: %w", err), s.Close())
	}
	return s, nil
}

// create makes everything that a server needs, up to configuring it.
func (s *Server) create(ctx context.Context, progress io.Writer) (err error) {
	if s.java == "" {
		if s.java, err = FindJava(ctx); err != nil {
			return err
		}
	}
	if progress == nil {
		progress = os.Stderr
	}
	if s.jars, err = Fetch(ctx, progress); err != nil {
		return err
	}
	remove := ""
	if s.temporary {
		s.dir, err = os.MkdirTemp("", "oncemill-kafka-")
		remove = s.dir
	} else if s.dir, err = filepath.Abs(s.dir); err == nil {
		err = os.MkdirAll(s.dir, 0o700)
	}
	if err == nil {
		err = os.MkdirAll(s.tmp(), 0o700)
	}
	if err != nil {
		return err
	}
	s.process, err = process.Prepare(remove)
	return err
}

// launch configures the server and starts it on its ports. It looks for others
// if somebody was faster in taking them.
func (s *Server) launch(ctx context.Context, options Options) (err error) {
	if err := free(options.Port); err != nil {
		return err
	}
	for range 5 {
		if err = s.choosePorts(options.Port); err != nil {
			return err
		}
		if err = s.configure(options.Config); err != nil {
			return err
		}
		if err = s.format(ctx); err != nil {
			return err
		}
		err = s.start(ctx)
		if err == nil || !strings.Contains(err.Error(), "Address already in use") {
			return err
		}
	}
	return err
}

// free tells whether nobody listens on a port. Kafka would tell, too, but takes 10
// seconds to end for it.
func free(port int) error {
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	return listener.Close()
}

func (s *Server) choosePorts(given int) (err error) {
	if s.controller, err = process.FreePort(); err != nil || given != 0 {
		return err
	}
	s.port, err = process.FreePort()
	return err
}

func (s *Server) configFile() string { return filepath.Join(s.dir, "server.properties") }
func (s *Server) pidFile() string    { return filepath.Join(s.dir, "pid") }
func (s *Server) logFile() string    { return filepath.Join(s.dir, "log") }
func (s *Server) tmp() string        { return filepath.Join(s.dir, "tmp") }

// command runs one of Kafka's programs, as soon as possible rather than as fast
// as possible: hardly compiled, and with the simplest garbage collector.
func (s *Server) command(memory string, args ...string) process.Command {
	java := []string{
		"-Xmx" + memory, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
		// Nothing is left in /tmp if it is killed.
		"-XX:-UsePerfData", "-Djava.io.tmpdir=" + s.tmp(),
		// The log goes to standard error. At the level info it is too long to
		// find anything, but for what this class tells of its steps.
		"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
		"-Dorg.slf4j.simpleLogger.log.kafka.server.BrokerServer=info",
		"-Dorg.slf4j.simpleLogger.showDateTime=true",
		"-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
		"-cp", filepath.Join(s.jars, "*"),
	}
	return process.Command{
		Path: s.java,
		Args: append(java, args...),
		Env:  environment(),
		Dir:  s.dir, // which the path of the data is relative to
		Log:  s.logFile(),
	}
}

// Start starts the server again after Stop or Kill, on the same port and the
// same topics, and returns when it answers clients.
func (s *Server) Start(ctx context.Context) error {
	if err := s.start(ctx); err != nil {
		return fmt.Errorf("start Kafka: %w", err)
	}
	return nil
}

func (s *Server) start(ctx context.Context) error {
	if err := s.process.Start(s.command("512m", "kafka.Kafka", s.configFile())); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	err := os.WriteFile(s.pidFile(), []byte(strconv.Itoa(s.process.PID())), 0o600)
	if err == nil {
		err = s.process.Ready(ctx, 20*time.Millisecond, s.answers)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%w%s", err, s.logTail()), s.process.Kill())
	}
	return nil
}

// answers tells whether the server answers, and counts itself among the brokers
// that are alive. After a crash it does not do so until the session of the broker
// that it was before has run out.
func (s *Server) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Broker()), kgo.RequestRetries(0))
	if err != nil {
		return err
	}
	defer client.Close()
	response, err := kmsg.NewPtrMetadataRequest().RequestWith(ctx, client)
	if err != nil {
		return err
	}
	if len(response.Brokers) == 0 {
		return errors.New("the broker is not registered yet")
	}
	return nil
}

// Broker returns the address for clients, such as 127.0.0.1:9092.
func (s *Server) Broker() string { return fmt.Sprintf("127.0.0.1:%d", s.port) }

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

// logTail returns the end of the log in a form that can be added to an error. What
// it says of exceptions is shown without where in Kafka they were thrown, which
// would fill it.
func (s *Server) logTail() string {
	text, _ := s.Log()
	var kept strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "\tat ") && !strings.HasPrefix(line, "\t... ") {
			kept.WriteString(line)
		}
	}
	return process.Tail(kept.String())
}

// Stop shuts the server down, which takes 2 seconds. The topics stay. It does
// nothing if the server is not running.
func (s *Server) Stop() error { return s.process.Stop(stopLimit) }

// Restart stops the server and starts it again, on the same port and the same
// topics.
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
		if !s.process.Wait(20 * time.Millisecond) {
			continue
		}
		err := s.Start(ctx)
		if errors.Is(err, process.ErrEnded) && s.process.Killed() {
			continue // before it was ready, which takes a few seconds
		}
		if err != nil && ctx.Err() == nil {
			return err
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
