package main_test

import (
	"bufio"
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "github.com/lib/pq"

	"github.com/oncemill/oncemill/testcontainers/kafkaserver"
)

var withservers string // the program

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "withservers-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	withservers = filepath.Join(dir, "withservers")
	if output, err := exec.Command("go", "build", "-o", withservers, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v\n%s", err, output)
		return 1
	}
	return m.Run()
}

// command returns the program with the servers that this test itself was given
// taken out of its environment.
func command(args ...string) *exec.Cmd {
	c := exec.Command(withservers, args...)
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "ONCEMILL_TEST_") {
			c.Env = append(c.Env, variable)
		}
	}
	return c
}

const show = `echo "$ONCEMILL_TEST_POSTGRES_URL"; echo "$ONCEMILL_TEST_NATS_URL"; echo "$ONCEMILL_TEST_REQUIRE"; `

func TestTheCommandFindsServersAndItsStatusIsKept(t *testing.T) {
	t.Parallel()
	c := command("sh", "-c", show+"read line; exit 7")
	input, output := pipes(t, c)
	start(t, c)
	postgres, nats := addresses(t, output)
	if require := output.Text(); require != "1" {
		t.Errorf("ONCEMILL_TEST_REQUIRE is %q", require)
	}
	if err := ping(postgres); err != nil {
		t.Errorf("Postgres: %v", err)
	}
	if err := dial(nats); err != nil {
		t.Errorf("NATS: %v", err)
	}
	fmt.Fprintln(input)
	if code := status(t, c); code != 7 {
		t.Errorf("the status is %d, not 7", code)
	}
	if dial(postgres) == nil || dial(nats) == nil {
		t.Error("a server is still there")
	}
}

func TestSignalsReachTheCommand(t *testing.T) {
	t.Parallel()
	c := command("sh", "-c", `trap 'exit 9' TERM; `+show+`while :; do sleep 0.05; done`)
	_, output := pipes(t, c)
	start(t, c)
	addresses(t, output)
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := status(t, c); code != 9 {
		t.Errorf("the status is %d, not 9", code)
	}
}

func TestACommandThatIsKilledGivesTheShellsStatus(t *testing.T) {
	t.Parallel()
	if code := status(t, started(t, command("sh", "-c", "kill -KILL $$"))); code != 128+9 {
		t.Errorf("the status is %d", code)
	}
	if code := status(t, started(t, command("/no/such/command"))); code != 127 {
		t.Errorf("the status without a command is %d", code)
	}
}

func TestGivenServersAreUsed(t *testing.T) {
	t.Parallel()
	c := command("sh", "-c", show)
	c.Env = append(c.Env, "ONCEMILL_TEST_POSTGRES_URL=postgres://given", "ONCEMILL_TEST_NATS_URL=nats://given")
	_, output := pipes(t, c)
	start(t, c)
	postgres, nats := addresses(t, output)
	if postgres != "postgres://given" || nats != "nats://given" {
		t.Errorf("the command was told %s and %s", postgres, nats)
	}
	if code := status(t, c); code != 0 {
		t.Errorf("the status is %d", code)
	}
}

func TestKafkaIsStartedOnRequest(t *testing.T) {
	t.Parallel()
	if _, err := kafkaserver.FindJava(t.Context()); err != nil && os.Getenv("ONCEMILL_TEST_REQUIRE_KAFKA") != "1" {
		t.Skip("needs Java 17 or later (Debian: openjdk-17-jre-headless): install it and run make test-kafka")
	}
	c := command("-kafka", "sh", "-c", `echo "kafka://$ONCEMILL_TEST_KAFKA_BROKERS"; read line`)
	input, output := pipes(t, c)
	start(t, c)
	output.Scan()
	kafka := output.Text()
	if err := dial(kafka); err != nil {
		t.Errorf("Kafka: %v", err)
	}
	fmt.Fprintln(input)
	if code := status(t, c); code != 0 {
		t.Errorf("the status is %d", code)
	}
	if dial(kafka) == nil {
		t.Error("Kafka is still there")
	}
}

func TestGivenBrokersAreUsed(t *testing.T) {
	t.Parallel()
	c := command("-kafka", "sh", "-c", `echo "$ONCEMILL_TEST_KAFKA_BROKERS"`)
	c.Env = append(c.Env, "ONCEMILL_TEST_KAFKA_BROKERS=a:1,b:2")
	if output, err := c.Output(); err != nil || string(output) != "a:1,b:2\n" {
		t.Errorf("the command was told %q, %v", output, err)
	}
}

func TestItTellsWhetherThereIsAKafka(t *testing.T) {
	t.Parallel()
	without := command("-kafka-available")
	without.Env = []string{"PATH=/nowhere", "ONCEMILL_TEST_DOCKER=0"}
	output, err := without.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !bytes.Contains(output, []byte("openjdk-17-jre-headless")) ||
		bytes.Count(output, []byte("\n")) != 1 {
		t.Errorf("%v\n%s", err, output)
	}
	for _, variable := range []string{"ONCEMILL_TEST_KAFKA_BROKERS=a:1", "ONCEMILL_JAVA=/no/such/java"} {
		given := command("-kafka-available")
		given.Env = []string{"PATH=/nowhere", "ONCEMILL_TEST_DOCKER=0", variable}
		if output, err := given.CombinedOutput(); err != nil || len(output) > 0 {
			t.Errorf("%v\n%s", err, output)
		}
	}
}

func TestServersEndWhenWithserversIsKilled(t *testing.T) {
	t.Parallel()
	c := command("sh", "-c", show+"read line")
	_, output := pipes(t, c)
	start(t, c)
	postgres, _ := addresses(t, output)
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	status(t, c)
	for deadline := time.Now().Add(20 * time.Second); dial(postgres) == nil; {
		if time.Now().After(deadline) {
			t.Fatal("Postgres is still there")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestWithoutACommandTheUsageIsShown(t *testing.T) {
	t.Parallel()
	output, err := command().CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 || !bytes.Contains(output, []byte("usage: withservers")) {
		t.Errorf("%v\n%s", err, output)
	}
}

func pipes(t *testing.T, c *exec.Cmd) (io.WriteCloser, *bufio.Scanner) {
	t.Helper()
	input, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	return input, bufio.NewScanner(output)
}

func start(t *testing.T, c *exec.Cmd) {
	t.Helper()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill() }) // if the test has not got so far
}

func started(t *testing.T, c *exec.Cmd) *exec.Cmd {
	t.Helper()
	start(t, c)
	return c
}

// addresses reads what the command shows of its environment; the scanner stays
// at the last line.
func addresses(t *testing.T, output *bufio.Scanner) (postgres, nats string) {
	t.Helper()
	output.Scan()
	postgres = output.Text()
	output.Scan()
	nats = output.Text()
	if !output.Scan() {
		t.Fatal("the command did not run")
	}
	return postgres, nats
}

func status(t *testing.T, c *exec.Cmd) int {
	t.Helper()
	var exit *exec.ExitError
	if err := c.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return c.ProcessState.ExitCode()
}

func ping(address string) error {
	db, err := sql.Open("postgres", address)
	if err != nil {
		return err
	}
	defer db.Close()
	return db.Ping()
}

// dial tells whether somebody listens at the address in a URL.
func dial(address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	conn, err := net.Dial("tcp", u.Host)
	if err == nil {
		conn.Close()
	}
	return err
}
