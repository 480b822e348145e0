package main_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	main "github.com/oncemill/oncemill/cmd/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/schema"
)

// buildDir is where tests build the program.
var buildDir string

func TestMain(m *testing.M) {
	var err error
	if buildDir, err = os.MkdirTemp("", "oncemill-test-"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(buildDir)
		os.Exit(code)
	}))
}

// call runs the program and returns its exit code and what it wrote.
func call(t *testing.T, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errors bytes.Buffer
	code = main.Run(t.Context(), args, env, &out, &errors)
	return code, out.String(), errors.String()
}

func TestHelpTeaches(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"help"}, {"--help"}, {"-h"}} {
		code, stdout, stderr := call(t, nil, args...)
		if code != 0 || stderr != "" {
			t.Errorf("%v: exit code %d, stderr %q", args, code, stderr)
		}
		for _, want := range []string{"migrate", "relay", "version", "ONCEMILL_DATABASE_URL", "oncemill relay --nats-url", "oncemill relay --kafka-brokers"} {
			if !strings.Contains(stdout, want) {
				t.Errorf("%v does not mention %s:\n%s", args, want, stdout)
			}
		}
	}
	for command, flags := range map[string][]string{
		"version": nil,
		"migrate": {"database-url", "schema", "print"},
		"resolve": {"database-url", "schema", "consumer", "ask-url", "landing-bound", "backoff", "deadline", "timeout", "concurrency",
			"poll-interval", "http", "log-level", "log-format"},
		"outbox":         {"database-url", "schema", "json"},
		"outbox list":    {"database-url", "schema", "json"},
		"outbox retry":   {"database-url", "schema"},
		"outbox drop":    {"database-url", "schema"},
		"outbox cancel":  {"database-url", "schema"},
		"outbox replay":  {"database-url", "schema"},
		"claims":         {"database-url", "schema", "consumer", "since", "json"},
		"claims events":  {"database-url", "schema", "json"},
		"claims list":    {"database-url", "schema", "consumer", "key", "outcome", "since", "limit", "json"},
		"claims show":    {"database-url", "schema", "json"},
		"claims purge":   {"database-url", "schema"},
		"claims resolve": {"database-url", "schema"},
		"guard": {"listen", "database-url", "schema", "tenants", "audit-token-file", "legacy", "tls-cert", "tls-key", "lease", "timeout", "retention",
			"event-retention", "drain-timeout", "connections", "test-calls", "log-level", "log-format"},
		"doctor": {"database-url", "schema", "role", "retention", "stream", "topic", "json", "route", "nats-url", "nats-creds", "nats-tls-ca", "nats-tls-cert", "nats-tls-key",
			"kafka-brokers", "kafka-tls", "kafka-tls-ca", "kafka-tls-cert", "kafka-tls-key", "kafka-sasl", "kafka-user", "kafka-password-file"},
		"guard tenants":        nil,
		"guard tenants add":    {"tenants", "expires-in", "rate", "burst"},
		"guard tenants rotate": {"tenants", "expires-in", "grace"},
		"guard tenants revoke": {"tenants"},
		"guard tenants list":   {"tenants", "json"},
		"relay": {"database-url", "schema", "nats-url", "nats-creds", "nats-tls-ca", "nats-tls-cert", "nats-tls-key",
			"kafka-brokers", "kafka-tls", "kafka-tls-ca", "kafka-tls-cert", "kafka-tls-key", "kafka-sasl", "kafka-user", "kafka-password-file", "route",
			"listen-url", "batch", "poll-interval", "publish-timeout", "drain-timeout", "keep", "http", "log-level", "log-format"},
	} {
		words := strings.Fields(command)
		_, long, _ := call(t, nil, append([]string{"help"}, words...)...)
		code, stdout, _ := call(t, nil, append(words, "--help")...)
		if code != 0 || stdout != long || !strings.Contains(stdout, "  oncemill "+command) {
			t.Errorf("%s --help: exit code %d, no example or another text than `help %s`:\n%s", command, code, command, stdout)
		}
		if n := strings.Count(stdout, "(ONCEMILL_"); n != len(flags) {
			t.Errorf("%s --help lists %d flags, want %d", command, n, len(flags))
		}
		for _, flag := range flags {
			variable := "ONCEMILL_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
			if !strings.Contains(stdout, "--"+flag) || !strings.Contains(stdout, "("+variable+")") {
				t.Errorf("%s --help does not list --%s and %s", command, flag, variable)
			}
		}
	}
}

// A password among the arguments could be read by all users of the machine.
func TestThePasswordForKafkaIsNoFlag(t *testing.T) {
	t.Parallel()
	_, stdout, _ := call(t, nil, "relay", "--help")
	if strings.Contains(stdout, "--kafka-password ") || !strings.Contains(stdout, "\n  ONCEMILL_KAFKA_PASSWORD\n") {
		t.Errorf("relay --help:\n%s", stdout)
	}
	code, _, stderr := call(t, nil, "relay", "--kafka-password="+secret)
	if code != 2 || !strings.Contains(stderr, "-kafka-password") || strings.Contains(stderr, secret) {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	version := fmt.Sprintf("schema %d", schema.Version)
	for _, arg := range []string{"version", "--version"} {
		code, stdout, stderr := call(t, nil, arg)
		if code != 0 || !strings.HasPrefix(stdout, "oncemill ") || !strings.Contains(stdout, version) || stderr != "" {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", arg, code, stdout, stderr)
		}
	}
}

// secret is a password that must never be printed.
const secret = "hunter2"

func TestBadInput(t *testing.T) {
	t.Parallel()
	url := "postgres://app:" + secret + "@127.0.0.1:1/app?sslmode=disable"
	missing := filepath.Join(t.TempDir(), "missing.pem")
	for name, test := range map[string]struct {
		args  []string
		env   map[string]string
		code  int
		names []string
	}{
		"no command":        {nil, nil, 2, []string{"which command", "migrate, relay, outbox, resolve, claims, guard, doctor, version"}},
		"unknown command":   {[]string{"relais"}, nil, 2, []string{`"relais"`, "migrate, relay, outbox, resolve, claims, guard, doctor, version"}},
		"unknown help":      {[]string{"help", "relais"}, nil, 2, []string{`"relais"`}},
		"help of a sub":     {[]string{"help", "outbox", "lisst"}, nil, 2, []string{`"outbox lisst"`, "one of list, retry, drop"}},
		"help of a word":    {[]string{"help", "relay", "now"}, nil, 2, []string{`"relay now"`}},
		"help of a URL":     {[]string{"help", "relay", url}, nil, 2, []string{"no command"}},
		"unknown sub":       {[]string{"guard", "tenants", "ad"}, nil, 2, []string{"one of add, rotate, revoke, list", "oncemill guard tenants --help"}},
		"URL as command":    {[]string{url}, nil, 2, []string{"must be a command"}},
		"flag before":       {[]string{"--database-url=" + url, "relay"}, nil, 2, []string{"--database-url comes before the command"}},
		"unknown flag":      {[]string{"relay", "--databse-url=" + url}, nil, 2, []string{"-databse-url", "oncemill relay --help"}},
		"URL as argument":   {[]string{"migrate", url}, nil, 2, []string{"takes flags only", "--name value"}},
		"flag of another":   {[]string{"migrate", "--batch", "5"}, nil, 2, []string{"-batch"}},
		"version with flag": {[]string{"version", "--schema", "x"}, nil, 2, []string{"-schema"}},
		"no value":          {[]string{"relay", "--batch"}, nil, 2, []string{"-batch"}},

		"no database":           {[]string{"migrate"}, nil, 2, []string{"--database-url", "ONCEMILL_DATABASE_URL", "postgres://"}},
		"no database for relay": {[]string{"relay"}, map[string]string{"ONCEMILL_DATABASE_URL": ""}, 2, []string{"--database-url", "ONCEMILL_DATABASE_URL"}},
		"bad database URL":      {[]string{"migrate", "--database-url", "postgres://app:" + secret + "@host:port/app"}, nil, 2, []string{"--database-url", "percent-encoded"}},
		"bad URL in variable":   {[]string{"migrate"}, map[string]string{"ONCEMILL_DATABASE_URL": "postgres://app:" + secret + "%zz@host/app"}, 2, []string{"--database-url"}},
		"no such database":      {[]string{"migrate", "--database-url", url}, nil, 1, []string{"127.0.0.1:1", "refused"}},
		"bad schema":            {[]string{"migrate", "--print", "--schema", strings.Repeat("x", 64)}, nil, 2, []string{"-schema", "63"}},
		"bad toggle":            {[]string{"migrate", "--print=maybe"}, nil, 2, []string{"-print", "maybe", "true or false"}},

		"batch of words":     {[]string{"relay", "--batch", "many"}, nil, 2, []string{`"many"`, "-batch", "whole number"}},
		"batch of zero":      {[]string{"relay", "--batch", "0"}, nil, 2, []string{`"0"`, "-batch", "at least 1"}},
		"batch in variable":  {[]string{"relay"}, map[string]string{"ONCEMILL_BATCH": "-1"}, 2, []string{`"-1"`, "ONCEMILL_BATCH", "at least 1"}},
		"negative duration":  {[]string{"relay", "--poll-interval", "-1s"}, nil, 2, []string{`"-1s"`, "-poll-interval", "10s"}},
		"duration, no unit":  {[]string{"relay", "--publish-timeout", "10"}, nil, 2, []string{`"10"`, "-publish-timeout", "unit"}},
		"negative keep":      {[]string{"relay", "--keep", "-1h"}, nil, 2, []string{`"-1h"`, "-keep", "24h"}},
		"bad drain timeout":  {[]string{"relay"}, map[string]string{"ONCEMILL_DRAIN_TIMEOUT": "soon"}, 2, []string{"ONCEMILL_DRAIN_TIMEOUT", "soon"}},
		"bad log level":      {[]string{"relay", "--log-level", "loud"}, nil, 2, []string{`"loud"`, "debug, warn, error"}},
		"bad log format":     {[]string{"relay", "--log-format", "xml"}, nil, 2, []string{`"xml"`, "text, json"}},
		"bad http address":   {[]string{"relay", "--database-url", url, "--http", "8080"}, nil, 2, []string{`"8080"`, "--http", "127.0.0.1:8080"}},
		"bad http port":      {[]string{"relay", "--database-url", url, "--http", "localhost:http2"}, nil, 2, []string{"--http"}},
		"bad NATS URL":       {[]string{"relay", "--database-url", url, "--nats-url", "nats://u:" + secret + "@host:port"}, nil, 2, []string{"--nats-url", "nats://host:4222"}},
		"missing creds":      {[]string{"relay", "--database-url", url, "--nats-creds", missing}, nil, 2, []string{"--nats-creds", missing}},
		"missing CA":         {[]string{"relay", "--database-url", url, "--nats-tls-ca", missing}, nil, 2, []string{"--nats-tls-ca", missing}},
		"cert without key":   {[]string{"relay", "--database-url", url, "--nats-tls-cert", missing}, nil, 2, []string{"--nats-tls-cert", "--nats-tls-key"}},
		"no NATS":            {[]string{"relay", "--database-url", url, "--nats-url", "nats://u:" + secret + "@127.0.0.1:1"}, nil, 1, []string{"NATS at 127.0.0.1:1", "--nats-url"}},
		"no NATS, odd token": {[]string{"relay", "--database-url", url, "--nats-url", secret + "@127.0.0.1:1"}, nil, 1, []string{"NATS at 127.0.0.1:1"}},
	} {
		code, stdout, stderr := call(t, test.env, test.args...)
		if code != test.code || stdout != "" {
			t.Errorf("%s: exit code %d, want %d; stdout %q, stderr %q", name, code, test.code, stdout, stderr)
		}
		for _, want := range test.names {
			if !strings.Contains(stderr, want) {
				t.Errorf("%s: %q does not name %s", name, stderr, want)
			}
		}
		if strings.Contains(stderr, secret) {
			t.Errorf("%s: the password is in %q", name, stderr)
		}
	}
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	url := testenv.EmptyPostgresURL(t)
	db := testenv.Open(t, url)
	for _, name := range []string{"oncemill", `it's "odd"`} {
		for range 2 { // the second time there is nothing to do
			code, stdout, stderr := call(t, map[string]string{"ONCEMILL_DATABASE_URL": url, "ONCEMILL_SCHEMA": "overridden"}, "migrate", "--schema", name)
			if code != 0 || !strings.Contains(stdout, fmt.Sprintf("has version %d", schema.Version)) || stderr != "" {
				t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
			}
		}
		var exists bool
		if err := db.QueryRow(`SELECT EXISTS (SELECT FROM information_schema.tables WHERE table_schema = $1 AND table_name = 'outbox')`, name).Scan(&exists); err != nil || !exists {
			t.Errorf("schema %s: no tables (%v)", name, err)
		}
	}
}

func TestMigratePrintNeedsNoDatabase(t *testing.T) {
	t.Parallel()
	db := testenv.Open(t, testenv.EmptyPostgresURL(t))
	for _, name := range []string{"oncemill", `it's "odd"`} {
		code, stdout, stderr := call(t, map[string]string{"ONCEMILL_SCHEMA": name}, "migrate", "--print")
		if code != 0 || stderr != "" {
			t.Fatalf("exit code %d, stderr %q", code, stderr)
		}
		if _, err := db.Exec(stdout); err != nil {
			t.Fatalf("schema %s: what was printed does not run: %v", name, err)
		}
		var n int
		if err := db.QueryRow(fmt.Sprintf(`SELECT max(version) FROM %s.schema_version`, schema.Quote(name))).Scan(&n); err != nil || n != schema.Version {
			t.Errorf("schema %s: version %d (%v)", name, n, err)
		}
	}
}
