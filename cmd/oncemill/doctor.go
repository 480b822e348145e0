package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/internal/doctor"
)

var doctorCommand = command{
	name:    "doctor",
	summary: "look at Postgres and the broker for what would go wrong",
	help: `
Look at Postgres, and at the broker if one is named, for what keeps Oncemill from
working or from what it promises, and say what was found, why it matters and what to
do. It changes nothing: all it does in Postgres is in read-only transactions.

  oncemill doctor --database-url 'postgres://app:secret@127.0.0.1:5432/app?sslmode=disable'

  oncemill doctor --role relay --nats-url nats://127.0.0.1:4222 \
      --database-url 'postgres://app:secret@127.0.0.1:5432/app?sslmode=disable'

Run it with the connection string of the program that you want to know about, and
--role for what that program does: settings and rights are those of its role.

  OK    as it should be
  WARN  it works, but not under all circumstances, or not for ever
  FAIL  it does not work, or not as promised
  SKIP  it could not be looked at

Postgres: connection and TLS; version; primary, not read-only; encoding; schema and its
owner; with --role the rights; fsync, synchronous_commit and standbys, without which
acknowledged work can be lost; poolers; parameters of the connection string; timeouts
that cut statements; isolation; free connections; clocks; what waits in the outbox, is
deferred, parked, scheduled; relays; effects in doubt; claims that nobody purges, or too
early; old snapshots, replication slots and prepared transactions, which keep vacuum
from its work; vacuum; sizes.

NATS, with --nats-url: connection and TLS; JetStream; of the streams that capture topics
of the outbox, or are named: replicas and storage, the window of deduplication, MaxAge
beside --retention, limits that are nearly reached, and their consumers.

Kafka, with --kafka-brokers: connection; of the topics of the outbox, or those named:
replicas and min.insync.replicas, retention.ms beside --retention, compaction, unclean
leaders.

Where the outbox is empty and nothing is named, it looks at all streams or topics, if
they are 20 at most.

It exits with 1 if anything is FAIL, else with 0; with 2 if it was not understood.`,
	prepare: prepareDoctor,
}

// doctorOptions are the flags of the command doctor.
type doctorOptions struct {
	database
	role            *string
	retention       *time.Duration
	streams, topics *[]string
	json            *bool
	broker          brokerOptions
}

func prepareDoctor(f *flags) action {
	o := doctorOptions{
		database:  f.database(),
		role:      f.oneOf("role", "what the program does whose rights are to be looked at", doctor.Roles),
		retention: f.duration("retention", 7*24*time.Hour, "for how long claims are kept: Inbox.Retention"),
		streams:   f.names("stream", "JetStream streams to look at as well, separated by commas"),
		topics:    f.names("topic", "topics to look at as well, separated by commas"),
		json:      f.toggle("json", "write a JSON object a line instead of text"),
		broker:    f.broker(),
	}
	return func(ctx context.Context, stdout, _ io.Writer) error { return o.run(ctx, stdout) }
}

// oneOf declares a flag that may be one of several, or nothing.
func (f *flags) oneOf(name, usage string, roles []doctor.Role) *string {
	var choices []string
	for _, r := range roles {
		choices = append(choices, string(r))
	}
	p := new(string)
	f.add(name, strings.ToUpper(name), usage+":\n"+strings.Join(choices, ", "), func(value string) error {
		if !slices.Contains(choices, value) {
			return fmt.Errorf("want one of %s", strings.Join(choices, ", "))
		}
		*p = value
		return nil
	})
	return p
}

// names declares a flag of several names.
func (f *flags) names(name, usage string) *[]string {
	p := new([]string)
	f.add(name, "NAMES", usage, func(value string) error {
		var all []string
		for one := range strings.SplitSeq(value, ",") {
			if one = strings.TrimSpace(one); one == "" {
				return errors.New("want a name, or several separated by commas")
			}
			all = append(all, one)
		}
		*p = all
		return nil
	})
	return p
}

// run looks at everything. What cannot be reached is a finding, and the rest is looked at.
func (o doctorOptions) run(ctx context.Context, stdout io.Writer) error {
	lookAtBroker, err := o.check()
	if err != nil {
		return err
	}
	out := &doctorReport{w: stdout, json: *o.json}
	findings, brief := (&doctor.Postgres{URL: *o.url, Schema: *o.schema, Role: doctor.Role(*o.role), Retention: *o.retention}).Check(ctx)
	out.print(findings)
	if lookAtBroker != nil {
		out.print(lookAtBroker(ctx, brief))
	}
	return out.end(lookAtBroker != nil)
}

// check checks the flags and returns what looks at the broker, nil if none is named.
func (o doctorOptions) check() (lookAtBroker func(context.Context, doctor.Briefing) []doctor.Finding, err error) {
	if _, err := o.connector(); err != nil {
		return nil, err
	}
	kafka, nats := o.broker.given("kafka-"), o.broker.given("nats-")
	switch brokers := o.broker.given("kafka-brokers"); {
	case brokers != "" && nats != "":
		return nil, usagef("%s is for Kafka and %s for NATS: leave out one or the other", brokers, nats)
	case brokers != "":
		if len(*o.streams) > 0 {
			return nil, usagef("--stream is for NATS: with Kafka name topics by --topic")
		}
		return o.kafka()
	case kafka != "":
		return nil, usagef("%s is for Kafka: give --kafka-brokers as well, or set %s", kafka, variable("kafka-brokers"))
	case nats != "":
		return o.nats()
	case len(*o.streams) > 0 || len(*o.topics) > 0:
		return nil, usagef("--stream and --topic need a broker: give --nats-url or --kafka-brokers")
	}
	return nil, nil
}

func (o doctorOptions) nats() (func(context.Context, doctor.Briefing) []doctor.Finding, error) {
	options, err := o.broker.nats.options(slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	options = append(options, nats.Name("oncemill doctor"), nats.Timeout(5*time.Second))
	return func(ctx context.Context, brief doctor.Briefing) []doctor.Finding {
		connect := func() (*nats.Conn, error) { return nats.Connect(*o.broker.nats.url, options...) }
		return (&doctor.NATS{Connect: connect, Address: redacted(*o.broker.nats.url), Briefing: brief, Topics: *o.topics, Streams: *o.streams}).Check(ctx)
	}, nil
}

func (o doctorOptions) kafka() (func(context.Context, doctor.Briefing) []doctor.Finding, error) {
	options, err := o.broker.kafka.options()
	if err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(append(options, kgo.ClientID("oncemill doctor"))...)
	if err != nil {
		return nil, fmt.Errorf("connect to Kafka: %w", err)
	}
	return func(ctx context.Context, brief doctor.Briefing) []doctor.Finding {
		defer client.Close()
		return (&doctor.Kafka{Client: client, Brokers: strings.Join(*o.broker.kafka.brokers, ","), Briefing: brief, Topics: *o.topics}).Check(ctx)
	}, nil
}
