package main_test

import (
	"strings"
	"testing"
)

func TestBadRoutes(t *testing.T) {
	t.Parallel()
	kafka := []string{"--kafka-brokers", "127.0.0.1:1"}
	for name, test := range map[string]struct {
		args  []string
		env   map[string]string
		names []string
	}{
		"no broker":          {[]string{"--route", "orders.*"}, nil, []string{`"orders.*"`, "--route", "'orders.*=nats'"}},
		"no topics":          {[]string{"--route", "=nats"}, nil, []string{"--route", "want TOPICS=nats"}},
		"unknown broker":     {[]string{"--route", "orders.*=rabbit"}, nil, []string{"--route", `"rabbit"`, "nats or kafka"}},
		"empty one":          {[]string{"--route", "orders.*=nats,"}, nil, []string{"--route", "want TOPICS=nats"}},
		"by variable":        {nil, map[string]string{"ONCEMILL_ROUTE": "orders"}, []string{"ONCEMILL_ROUTE", "want TOPICS=nats"}},
		"NATS wildcard":      {[]string{"--route", "orders.>=nats"}, nil, []string{"--route: route 1", `"orders.*"`}},
		"out of reach":       {append(kafka, "--route", "*=nats", "--route", "audit=kafka"), nil, []string{"--route: route 2", `"audit"`, "never reached", `route 1, "*"`}},
		"by variable, too":   {kafka, map[string]string{"ONCEMILL_ROUTE": "*=nats, audit=kafka"}, []string{"--route: route 2", "never reached"}},
		"no Kafka":           {[]string{"--route", "audit=kafka"}, nil, []string{"--route leads to kafka", "--kafka-brokers", "ONCEMILL_KAFKA_BROKERS"}},
		"Kafka for nothing":  {append(kafka, "--route", "*=nats"), nil, []string{"--kafka-brokers is given", "no --route leads to kafka", "'*=kafka'"}},
		"NATS for nothing":   {append(kafka, "--nats-url", "nats://127.0.0.1:1", "--route", "*=kafka"), nil, []string{"--nats-url is given", "no --route leads to nats"}},
		"one broker's flags": {append(kafka, "--kafka-sasl", "plain", "--route", "audit=kafka"), nil, []string{"--kafka-sasl", "--kafka-user"}},
		"without routes":     {append(kafka, "--nats-url", "nats://127.0.0.1:1"), nil, []string{"--kafka-brokers", "--nats-url", "--route"}},
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
	}
}

// With routes to both, the error names the broker that is not there.
func TestRelayDoesNotStartWithoutOneOfTwoBrokers(t *testing.T) {
	t.Parallel()
	s := start(t)
	for name, test := range map[string]struct {
		nats  string
		names []string
	}{
		"without Kafka": {s.natsURL, []string{"Kafka at 127.0.0.1:1", "--kafka-brokers"}},
		"without NATS":  {"nats://127.0.0.1:1", []string{"NATS at 127.0.0.1:1", "--nats-url"}},
	} {
		code, _, stderr := call(t, nil, "relay", "--database-url", s.dbURL, "--nats-url", test.nats, "--kafka-brokers", "127.0.0.1:1",
			"--route", "orders.*=nats", "--route", "audit-*=kafka")
		if code != 1 {
			t.Errorf("%s: exit code %d, want 1; %s", name, code, stderr)
		}
		for _, want := range test.names {
			if !strings.Contains(stderr, want) {
				t.Errorf("%s: %q does not name %s", name, stderr, want)
			}
		}
	}
}

// Routes to one broker only are a filter: what has none is parked.
func TestRelayWithRoutesToOneBroker(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.publish(t, 10)
	_, err := s.db.Exec(`INSERT INTO oncemill.outbox (topic) VALUES ('elsewhere')`)
	must(t, err)
	r := s.relay(t, "--route", s.subject+"=nats")
	poll(t, func() bool { return s.inStream(t) == 10 && s.inOutbox(t) == 1 })
	poll(t, func() bool {
		return strings.Contains(r.log.String(), "topic=elsewhere")
	})
}
