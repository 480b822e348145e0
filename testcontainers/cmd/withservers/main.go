// Command withservers runs a command that needs Postgres and NATS.
//
//	withservers [flags] command [argument ...]
//
// It starts both servers, tells the command where they are through the
// environment (ONCEMILL_TEST_POSTGRES_URL, ONCEMILL_TEST_NATS_URL, and
// ONCEMILL_TEST_REQUIRE=1, so that no test skips itself for the want of a
// server), passes signals on, stops the servers, and exits as the command did.
// A server that the environment names already is used instead of a new one.
//
// With -kafka it starts a Kafka as well (ONCEMILL_TEST_KAFKA_BROKERS).
//
// With -pgbouncer it starts a PgBouncer in front of the Postgres
// (ONCEMILL_TEST_PGBOUNCER), through which the tests then go to their databases.
//
//	withservers -kafka-available
//	withservers -pgbouncer-available
//
// start nothing: they exit with status 0 if there is something to start a Kafka, or
// a PgBouncer, with, and otherwise say what is missing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/oncemill/oncemill/testcontainers/internal/servers"
	"github.com/oncemill/oncemill/testcontainers/natsserver"
)

const usage = `usage: withservers [flags] command [argument ...]

Runs a command with a Postgres and a NATS server, whose addresses it finds in
ONCEMILL_TEST_POSTGRES_URL and ONCEMILL_TEST_NATS_URL; with -kafka also with a
Kafka, in ONCEMILL_TEST_KAFKA_BROKERS.

`

const (
	kafkaVariable     = "ONCEMILL_TEST_KAFKA_BROKERS"
	pgbouncerVariable = "ONCEMILL_TEST_PGBOUNCER"
)

func main() {
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	quiet := flag.Bool("quiet", false, "do not say where the servers are")
	kafka := flag.Bool("kafka", false, "start a Kafka as well, which needs Java or Docker")
	pgbouncer := flag.Bool("pgbouncer", false, "have the tests go to Postgres through a PgBouncer, which it starts as well")
	ask := flag.Bool("kafka-available", false, "run nothing: fail, and say what is missing, if no Kafka could be started")
	askPooler := flag.Bool("pgbouncer-available", false, "run nothing: fail, and say what is missing, if no PgBouncer could be started")
	flag.Parse()
	if *ask {
		os.Exit(kafkaAvailable())
	}
	if *askPooler {
		os.Exit(pgbouncerAvailable())
	}
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	code, err := run(flag.Args(), wanted{*kafka, *pgbouncer}, *quiet)
	if err != nil {
		fmt.Fprintln(os.Stderr, "withservers:", err)
	}
	os.Exit(code)
}

// kafkaAvailable returns the exit status. A Java that is named but does not work
// is not one that is missing: the tests shall fail for it.
func kafkaAvailable() (code int) {
	if os.Getenv(kafkaVariable) != "" {
		return 0
	}
	if err := servers.KafkaAvailable(context.Background()); errors.Is(err, servers.ErrNoKafka) {
		fmt.Println(servers.ErrNoKafka)
		return 1
	}
	return 0
}

func pgbouncerAvailable() (code int) {
	if os.Getenv(pgbouncerVariable) != "" {
		return 0
	}
	if missing := servers.PgBouncerMissing(context.Background()); missing != "" {
		fmt.Println(missing)
		return 1
	}
	return 0
}

// wanted is what to start besides Postgres and NATS.
type wanted struct{ kafka, pgbouncer bool }

// run returns the exit status. An error of its own is 125, so that it is not
// taken for one of the command.
func run(command []string, also wanted, quiet bool) (code int, err error) {
	// Before the servers start, so that an interrupt stops them as well.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	var started stack
	defer func() { err = errors.Join(err, started.stop()) }()
	ready := make(chan error, 1)
	go func() { ready <- started.start(ctx, also) }()
	select {
	case err = <-ready:
	case s := <-signals:
		cancel()
		<-ready
		return 128 + int(s.(syscall.Signal)), fmt.Errorf("%v while the servers were starting", s)
	}
	if err != nil {
		return 125, err
	}
	if !quiet {
		fmt.Fprintf(os.Stderr, "withservers: %s\n", started.summary)
	}
	return execute(command, signals)
}

// A stack is the servers that were started here.
type stack struct {
	stops   []func() error
	summary string
}

// start starts the servers that the environment does not name, and names them
// in it.
func (s *stack) start(ctx context.Context, also wanted) error {
	begin := time.Now()
	postgres, err := s.provide("ONCEMILL_TEST_POSTGRES_URL", func() (string, func() error, error) {
		return servers.Postgres(ctx)
	})
	if err != nil {
		return err
	}
	nats, err := s.provide("ONCEMILL_TEST_NATS_URL", func() (string, func() error, error) {
		server, err := natsserver.Embed()
		if err != nil {
			return "", nil, err
		}
		return server.URL(), server.Close, nil
	})
	if err != nil {
		return err
	}
	s.summary = fmt.Sprintf("Postgres %s, NATS %s", postgres, nats)
	if also.kafka {
		kafka, err := s.provide(kafkaVariable, func() (string, func() error, error) {
			return servers.Kafka(ctx)
		})
		if err != nil {
			return err
		}
		s.summary += ", Kafka " + kafka
	}
	if also.pgbouncer {
		pgbouncer, err := s.provide(pgbouncerVariable, func() (string, func() error, error) {
			return servers.PgBouncer(ctx, os.Getenv("ONCEMILL_TEST_POSTGRES_URL"))
		})
		if err != nil {
			return err
		}
		s.summary += ", PgBouncer " + pgbouncer
	}
	s.summary += fmt.Sprintf(", ready in %v", time.Since(begin).Round(time.Millisecond))
	return os.Setenv("ONCEMILL_TEST_REQUIRE", "1")
}

// provide starts a server unless a variable names one, and says which of the
// two it was.
func (s *stack) provide(variable string, start func() (string, func() error, error)) (origin string, err error) {
	if os.Getenv(variable) != "" {
		return "given by " + variable, nil
	}
	address, stop, err := start()
	if err != nil {
		return "", err
	}
	s.stops = append(s.stops, stop)
	return "started", os.Setenv(variable, address)
}

func (s *stack) stop() error {
	var err error
	for _, stop := range slices.Backward(s.stops) { // the pooler before its Postgres
		err = errors.Join(err, stop())
	}
	return err
}

// execute runs the command and returns its exit status, in the shell's manner
// if a signal has ended it.
func execute(command []string, signals <-chan os.Signal) (code int, err error) {
	c := exec.Command(command[0], command[1:]...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := c.Start(); err != nil {
		return 127, err
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	for {
		select {
		case s := <-signals:
			// The terminal has sent an interrupt to the command as well; a
			// second one does no harm.
			_ = c.Process.Signal(s)
		case err := <-ended:
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				return 125, err
			}
			status := c.ProcessState.Sys().(syscall.WaitStatus)
			if status.Signaled() {
				return 128 + int(status.Signal()), nil
			}
			return status.ExitStatus(), nil
		}
	}
}
