package main_test

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/oncemill/oncemill/examples/internal/demotest"
	"github.com/oncemill/oncemill/testcontainers/kafkaserver"
)

// The demo keeps its promise on a small run, and leaves nothing behind.
func TestQuickstart(t *testing.T) {
	t.Parallel()
	keepsItsPromise(t, "nats", "lost ack")
}

// The same on a real Kafka.
func TestQuickstartKafka(t *testing.T) {
	needJava(t)
	t.Parallel()
	keepsItsPromise(t, "kafka", "lost offset commit")
}

func keepsItsPromise(t *testing.T, broker, loss string) {
	d := demotest.Start(t, nil, "-messages", "500", "-broker", broker)
	if err := d.Wait(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, d.Stdout.String(), d.Stderr.String())
	}
	last := d.LastLine()
	want := regexp.MustCompile(`^demo: broker=` + broker + ` published=500 deliveries=\d+ duplicates=[1-9]\d* effects=500 lost=0 twice=0$`)
	if !want.MatchString(last) {
		t.Errorf("the last line is %q", last)
	}
	for _, fault := range []string{"billing: handler error", "billing: handler panic", "billing: killed with SIGKILL",
		"shipping: killed with SIGKILL", "relay: killed with SIGKILL", loss} {
		if n := strings.Count(d.Stdout.String(), fault+" ("); n < 5 {
			t.Errorf("%q is shown %d times, want at least 5:\n%s", fault, n, d.Stdout.String())
		}
	}
	d.LeavesNothing()
}

// needJava ends a test where there is none that Kafka runs on.
func needJava(t *testing.T) {
	t.Helper()
	_, err := kafkaserver.FindJava(t.Context())
	if errors.Is(err, kafkaserver.ErrNoJava) && os.Getenv("ONCEMILL_TEST_REQUIRE_KAFKA") != "1" {
		t.Skip(kafkaserver.ErrNoJava)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Ctrl-C in the middle of the work ends all processes and removes all files.
func TestQuickstartInterrupted(t *testing.T) {
	t.Parallel()
	demotest.Interrupted(t, "killed with SIGKILL", "-broker", "nats")
}

func TestQuickstartKafkaInterrupted(t *testing.T) {
	needJava(t)
	t.Parallel()
	demotest.Interrupted(t, "killed with SIGKILL", "-broker", "kafka")
}

// Nobody can clean up after a kill -9, but no process outlives the conductor.
func TestQuickstartKilled(t *testing.T) {
	t.Parallel()
	demotest.Killed(t, "killed with SIGKILL", "-broker", "nats")
}

func TestQuickstartKafkaKilled(t *testing.T) {
	needJava(t)
	t.Parallel()
	demotest.Killed(t, "killed with SIGKILL", "-broker", "kafka")
}

// Without Java nothing is started, and one line says what to install.
func TestQuickstartKafkaWithoutJava(t *testing.T) {
	t.Parallel()
	d := demotest.Start(t, []string{"PATH=", "JAVA_HOME=", "ONCEMILL_JAVA="}, "-broker", "kafka")
	if code := d.ExitCode(); code != 1 {
		t.Errorf("without Java: exit status %d, want 1", code)
	}
	said := d.Stderr.String()
	if strings.Count(said, "\n") != 1 || !strings.Contains(said, "openjdk-17-jre-headless") || d.Stdout.Len() > 0 {
		t.Errorf("it says %q and %q", d.Stdout.String(), said)
	}
}

func TestQuickstartRefusesWhatItCannotShow(t *testing.T) {
	t.Parallel()
	for arg, want := range map[string]string{
		"-messages=10":           "must be at least 100",
		"-messages=many":         "-messages",
		"-broker=carrier-pigeon": "carrier-pigeon",
		"10000":                  "no flag",
	} {
		d := demotest.Start(t, nil, arg)
		if err := d.Wait(); err == nil || !strings.Contains(d.Stderr.String(), want) {
			t.Errorf("%s: %v, %s", arg, err, d.Stderr.String())
		}
	}
}
