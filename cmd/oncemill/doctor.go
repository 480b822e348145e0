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
	"github.com/oncemill/oncemill/outbox"
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
early; messages that keep failing; old snapshots, replication slots and prepared
transactions, which keep vacuum from its work; vacuum; sizes.

NATS, with --nats-url: connection and TLS; JetStream; of the streams that capture topics
of the outbox, or are named: replicas and storage, the window of deduplication, MaxAge
beside --retention, limits that are nearly reached, and their consumers.

Kafka, with --kafka-brokers: connection; of the topics of the outbox, or those named:
replicas and min.insync.replicas, retention.ms beside --retention, compaction, unclean
leaders, consumer groups that nobody works for.

A relay that publishes to both has routes: give them here too.

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
		broker:    f.brokerUnless("(without a flag for NATS it is not\nlooked at)"),
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

// A look looks at one broker, as the database says that it has to be.
type look func(context.Context, doctor.Briefing) []doctor.Finding

// run looks at everything. What cannot be reached is a finding, and the rest is looked at.
func (o doctorOptions) run(ctx context.Context, stdout io.Writer) error {
	brokers, err := o.check()
	if err != nil {
		return err
	}
	out := &doctorReport{w: stdout, json: *o.json}
	findings, brief := (&doctor.Postgres{URL: *o.url, Schema: *o.schema, Role: doctor.Role(*o.role), Retention: *o.retention}).Check(ctx)
	out.print(findings)
	brief.Topics = append(brief.Topics, *o.topics...)
	topics := o.divide(brief.Topics)
	out.print(unrouted(topics[""]))
	for _, name := range []string{toNATS, toKafka} {
		if lookAt := brokers[name]; lookAt != nil {
			brief.Topics = topics[name]
			out.print(lookAt(ctx, brief))
		}
	}
	return out.end(len(brokers) > 0)
}

// check checks the flags and returns what looks at the brokers that are named.
func (o doctorOptions) check() (map[string]look, error) {
	if _, err := o.connector(); err != nil {
		return nil, err
	}
	kafka, nats := o.broker.given("kafka-"), o.broker.given("nats-")
	switch brokers := o.broker.given("kafka-brokers"); {
	case kafka != "" && brokers == "":
		return nil, usagef("%s is for Kafka: give --kafka-brokers as well, or set %s", kafka, variable("kafka-brokers"))
	case brokers != "" && nats == "" && len(*o.streams) > 0:
		return nil, usagef("--stream is for NATS: with Kafka name topics by --topic")
	case brokers == "" && nats == "" && (len(*o.streams) > 0 || len(*o.topics) > 0 || len(*o.broker.routes) > 0):
		return nil, usagef("--stream, --topic and --route need a broker: give --nats-url or --kafka-brokers")
	case brokers == "" && nats == "":
		return nil, nil
	case len(*o.broker.routes) > 0 || brokers != "" && nats != "": // they are checked as the relay does
		if _, err := o.broker.check(slog.New(slog.DiscardHandler)); err != nil {
			return nil, err
		}
	}
	looks := make(map[string]look)
	for name, one := range map[string]struct {
		given string
		look  func() (look, error)
	}{toNATS: {nats, o.nats}, toKafka: {kafka, o.kafka}} {
		if one.given == "" {
			continue
		}
		lookAt, err := one.look()
		if err != nil {
			return nil, err
		}
		looks[name] = lookAt
	}
	return looks, nil
}

// divide returns which topics go to which broker, and under "" those without a route, as
// the relay's router has it.
func (o doctorOptions) divide(topics []string) map[string][]string {
	if len(*o.broker.routes) == 0 { // there is one broker at most
		return map[string][]string{toNATS: topics, toKafka: topics}
	}
	var nats, kafka topicsSeen
	router := &outbox.Router{Routes: *o.broker.routes, Sinks: map[string]outbox.Sink{toNATS: &nats, toKafka: &kafka}}
	rows := make([]outbox.Row, len(topics))
	for i, topic := range topics {
		rows[i].Topic = topic
	}
	divided := make(map[string][]string)
	for i, err := range router.PublishBatch(context.Background(), rows) {
		if err != nil {
			divided[""] = append(divided[""], topics[i])
		}
	}
	divided[toNATS], divided[toKafka] = nats, kafka
	return divided
}

// topicsSeen is a sink that keeps the topics of the rows that it is given.
type topicsSeen []string

func (s *topicsSeen) PublishBatch(_ context.Context, rows []outbox.Row) []error {
	for _, row := range rows {
		*s = append(*s, row.Topic)
	}
	return make([]error, len(rows))
}

// unrouted says which topics lead nowhere.
func unrouted(topics []string) (findings []doctor.Finding) {
	for _, topic := range topics {
		findings = append(findings, doctor.Finding{
			Level: doctor.Fail, Part: doctor.PartPostgres, Check: "routes", Found: fmt.Sprintf("no --route has topic %q", topic),
			Why: "the relay parks messages to it", Do: "add a route to the relay, such as --route '*=nats' as the last",
		})
	}
	return findings
}

func (o doctorOptions) nats() (look, error) {
	options, err := o.broker.nats.options(slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	options = append(options, nats.Name("oncemill doctor"), nats.Timeout(5*time.Second))
	return func(ctx context.Context, brief doctor.Briefing) []doctor.Finding {
		connect := func() (*nats.Conn, error) { return nats.Connect(*o.broker.nats.url, options...) }
		return (&doctor.NATS{Connect: connect, Address: redacted(*o.broker.nats.url), Briefing: brief, Streams: *o.streams}).Check(ctx)
	}, nil
}

func (o doctorOptions) kafka() (look, error) {
	options, err := o.broker.kafka.options()
	if err != nil {
		return nil, err
	}
	options = append(options, kgo.ClientID("oncemill doctor"))
	return func(ctx context.Context, brief doctor.Briefing) []doctor.Finding {
		brokers := strings.Join(*o.broker.kafka.brokers, ",")
		client, err := kgo.NewClient(options...)
		if err != nil {
			return []doctor.Finding{{Level: doctor.Fail, Part: doctor.PartKafka, Check: "connection", Found: brokers + ": " + err.Error()}}
		}
		defer client.Close()
		return (&doctor.Kafka{Client: client, Brokers: brokers, Briefing: brief}).Check(ctx)
	}, nil
}
