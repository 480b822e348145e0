package main_test

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestBadInputForKafka(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	missing, empty, password := filepath.Join(dir, "missing"), file("empty", "\n"), file("password", secret+"\n")
	broker := []string{"--kafka-brokers", "127.0.0.1:1"}
	login := slices.Clip(append(broker, "--kafka-sasl", "scram-sha-256", "--kafka-user", "relay"))
	variable := func(value string) map[string]string { return map[string]string{"ONCEMILL_KAFKA_PASSWORD": value} }
	for name, test := range map[string]struct {
		args  []string
		env   map[string]string
		names []string
	}{
		"NATS as well":          {append(broker, "--nats-url", "nats://127.0.0.1:1"), nil, []string{"--kafka-brokers", "--nats-url", "leave out"}},
		"NATS by variable":      {broker, map[string]string{"ONCEMILL_NATS_CREDS": missing}, []string{"--kafka-brokers", "ONCEMILL_NATS_CREDS"}},
		"both by variable":      {nil, map[string]string{"ONCEMILL_KAFKA_BROKERS": "127.0.0.1:1", "ONCEMILL_NATS_URL": "127.0.0.1:1"}, []string{"ONCEMILL_KAFKA_BROKERS", "ONCEMILL_NATS_URL"}},
		"no brokers":            {[]string{"--kafka-tls"}, nil, []string{"--kafka-tls is", "--kafka-brokers", "ONCEMILL_KAFKA_BROKERS"}},
		"only a password":       {nil, variable(secret), []string{"ONCEMILL_KAFKA_PASSWORD is", "--kafka-brokers"}},
		"empty brokers":         {[]string{"--kafka-brokers", ""}, nil, []string{"-kafka-brokers", "host:port"}},
		"no port":               {[]string{"--kafka-brokers", "10.0.0.1:9092,10.0.0.2"}, nil, []string{"-kafka-brokers", "host:port"}},
		"bad port":              {[]string{"--kafka-brokers", "localhost:kafka"}, nil, []string{"-kafka-brokers", "host:port"}},
		"no host":               {[]string{"--kafka-brokers", ":9092"}, nil, []string{"-kafka-brokers", "host:port"}},
		"URL":                   {[]string{"--kafka-brokers", "kafka://localhost:9092"}, nil, []string{"-kafka-brokers", "host:port"}},
		"no port, variable":     {nil, map[string]string{"ONCEMILL_KAFKA_BROKERS": "localhost"}, []string{"ONCEMILL_KAFKA_BROKERS", "host:port"}},
		"missing CA":            {append(broker, "--kafka-tls-ca", missing), nil, []string{"--kafka-tls-ca", missing, "may read"}},
		"CA without any":        {append(broker, "--kafka-tls-ca", empty), nil, []string{"--kafka-tls-ca", empty, "PEM"}},
		"cert without key":      {append(broker, "--kafka-tls-cert", missing), nil, []string{"--kafka-tls-cert", "--kafka-tls-key", "both"}},
		"key without cert":      {append(broker, "--kafka-tls-key", missing), nil, []string{"--kafka-tls-cert", "--kafka-tls-key", "both"}},
		"missing cert":          {append(broker, "--kafka-tls-cert", missing, "--kafka-tls-key", empty), nil, []string{"--kafka-tls-cert", missing, "PEM"}},
		"unknown mechanism":     {append(broker, "--kafka-sasl", "PLAIN"), nil, []string{"-kafka-sasl", "none, plain, scram-sha-256, scram-sha-512"}},
		"user alone":            {append(broker, "--kafka-user", "relay"), nil, []string{"--kafka-user", "--kafka-sasl", "scram-sha-512"}},
		"password alone":        {broker, variable(secret), []string{"ONCEMILL_KAFKA_PASSWORD", "--kafka-sasl", "--kafka-user"}},
		"password file alone":   {append(broker, "--kafka-password-file", password), nil, []string{"--kafka-password-file", "--kafka-sasl", "--kafka-user"}},
		"mechanism alone":       {append(broker, "--kafka-sasl", "plain"), nil, []string{"--kafka-sasl", "--kafka-user"}},
		"no password":           {login, nil, []string{"--kafka-password-file", "ONCEMILL_KAFKA_PASSWORD"}},
		"two passwords":         {append(login, "--kafka-password-file", password), variable(secret), []string{"--kafka-password-file", "ONCEMILL_KAFKA_PASSWORD", "leave out"}},
		"missing password file": {append(login, "--kafka-password-file", missing), nil, []string{"--kafka-password-file", missing, "may read"}},
		"empty password file":   {append(login, "--kafka-password-file", empty), nil, []string{"--kafka-password-file", empty, "empty"}},
	} {
		args := append([]string{"relay", "--database-url", "postgres://127.0.0.1:1/app"}, test.args...)
		code, stdout, stderr := call(t, test.env, args...)
		if code != 2 || stdout != "" {
			t.Errorf("%s: exit code %d, want 2; stdout %q, stderr %q", name, code, stdout, stderr)
		}
		for _, want := range append(test.names, "oncemill relay --help") {
			if !strings.Contains(stderr, want) {
				t.Errorf("%s: %q does not name %s", name, stderr, want)
			}
		}
		if strings.Contains(stderr, secret) {
			t.Errorf("%s: the password is in %q", name, stderr)
		}
	}
}

// What listens here is no Kafka, or nothing listens at all.
func TestRelayDoesNotStartWithoutKafka(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	rude := listener.Addr().String()
	password := map[string]string{"ONCEMILL_KAFKA_PASSWORD": secret}
	for name, test := range map[string]struct {
		brokers string
		args    []string
		env     map[string]string
		names   []string
	}{
		"nobody listens": {"127.0.0.1:1", nil, nil, []string{"Kafka at 127.0.0.1:1", "refused", "--kafka-brokers"}},
		"no Kafka":       {rude, nil, nil, []string{"Kafka at " + rude, "--kafka-tls"}},
		"two":            {rude + ", 127.0.0.1:1", nil, nil, []string{"Kafka at " + rude + ",127.0.0.1:1"}},
		"TLS":            {rude, []string{"--kafka-tls"}, nil, []string{"Kafka at " + rude, "--kafka-tls"}},
		"plain password": {rude, []string{"--kafka-sasl", "plain", "--kafka-user", "relay"}, password, []string{"level=WARN", "without --kafka-tls", "Kafka at " + rude}},
	} {
		args := append([]string{"relay", "--database-url", "postgres://127.0.0.1:1/app", "--kafka-brokers", test.brokers}, test.args...)
		code, _, stderr := call(t, test.env, args...)
		if code != 1 {
			t.Errorf("%s: exit code %d, want 1; %s", name, code, stderr)
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
