package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// NATS is the broker to be looked at.
type NATS struct {
	Connect  func() (*nats.Conn, error) // its error names no password
	Address  string                     // for people, without user and password
	Briefing Briefing                   // what the database says
	Streams  []string                   // streams to look at besides those that capture the topics

	js        jetstream.JetStream
	clustered bool // the server is one of several
	findings
}

// natsWithin bounds each question.
const natsWithin = 5 * time.Second

// Check looks at everything that can be reached.
func (n *NATS) Check(ctx context.Context) []Finding {
	n.part = PartNATS
	begun := time.Now()
	conn, err := n.Connect()
	if err != nil {
		n.fail("connection", n.Address+" cannot be reached: "+err.Error(), "what the outbox holds waits until NATS is back; what else is in NATS was not looked at",
			"check --nats-url, TLS, the credentials and that the server runs")
		return n.all
	}
	defer conn.Close()
	n.ok("connection", "%s answers in %v", conn.ConnectedUrlRedacted(), time.Since(begun).Round(time.Millisecond))
	n.clustered = conn.ConnectedClusterName() != ""
	n.lookAtTransport(conn)
	n.lookAtServer(conn)
	if n.js, err = jetstream.New(conn); err != nil {
		n.fail("JetStream", err.Error(), "", "")
		return n.all
	}
	if n.lookAtJetStream(ctx) {
		n.lookAtStreams(ctx)
	}
	return n.all
}

func (n *NATS) lookAtTransport(conn *nats.Conn) {
	host := conn.ConnectedAddr()
	if u := conn.ConnectedUrlRedacted(); u != "" {
		host = hostOf(u)
	}
	switch {
	case conn.TLSRequired():
		n.ok("TLS", "the connection is encrypted")
	case isLocal(host):
		n.ok("TLS", "the connection is not encrypted, and stays on this machine")
	default:
		n.warn("TLS", "the connection is not encrypted and leaves this machine", "whoever is on the network between reads all messages, and can change them", "set up TLS in nats-server and connect with tls://")
	}
}

func (n *NATS) lookAtServer(conn *nats.Conn) {
	n.ok("version", "nats-server %s", conn.ConnectedServerVersion())
	n.ok("max_payload", "a message may have %s; a larger one is parked in the outbox", size(conn.MaxPayload()))
}

// lookAtJetStream reports whether streams can be looked at.
func (n *NATS) lookAtJetStream(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, natsWithin)
	defer cancel()
	account, err := n.js.AccountInfo(ctx)
	switch {
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled) || errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		n.fail("JetStream", "JetStream is not enabled", "NATS without it keeps nothing: a message that nobody receives at that moment is gone", "start nats-server with -js, or enable JetStream for the account")
		return false
	case err != nil:
		n.skip("JetStream", "no answer about JetStream: "+err.Error(), "the user may not be allowed to ask: let it publish to $JS.API.>")
		return false
	}
	n.ok("JetStream", "enabled, with %s", counted(int64(account.Streams), 0, "stream", "streams"))
	n.lookAtLimit("JetStream", "storage of the account", account.Store, account.Limits.MaxStore)
	return true
}

// lookAtLimit warns of a limit that is nearly reached. 0 or less is none.
func (f *findings) lookAtLimit(check, what string, used uint64, most int64) {
	if most > 0 && used*10 >= uint64(most)*9 {
		f.warn(check, fmt.Sprintf("the %s is nearly used up: %d of %d", what, used, most), "then nothing can be published, and the outbox grows; or, with the policy to discard old messages, those are dropped that nobody has handled", "raise the limit, or see why messages stay")
	}
}

// lookAtStreams looks at the streams that were named, and those that capture the topics.
// If there are none of either, it looks at all, where they are few.
func (n *NATS) lookAtStreams(ctx context.Context) {
	names := slices.Clone(n.Streams)
	topics := n.Briefing.topics()
	for _, topic := range topics {
		name, ok := n.capturing(ctx, topic)
		if ok && name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 && len(topics) == 0 {
		names = n.allStreams(ctx)
	}
	for _, name := range names {
		n.lookAtStream(ctx, name)
	}
}

func (n *NATS) capturing(ctx context.Context, topic string) (name string, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, natsWithin)
	defer cancel()
	name, err := n.js.StreamNameBySubject(ctx, topic)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		n.fail("stream", fmt.Sprintf("no stream captures topic %q", topic), "messages to it wait in the outbox", n.streamAdd(topic)+"; or add the subject to a stream")
		return "", false
	case err != nil:
		n.skip("stream", fmt.Sprintf("which stream captures topic %q is not known: %v", topic, err), "")
		return "", false
	}
	return name, true
}

// streamAdd is the command that makes a stream, with as many replicas as there can be.
func (n *NATS) streamAdd(subject string) string {
	command := "nats stream add NAME --subjects " + subject + " --defaults"
	if n.clustered {
		command += " --replicas 3"
	}
	return command
}

// mostStreams is how many streams are looked at where none was named.
const mostStreams = 20

func (n *NATS) allStreams(ctx context.Context) (names []string) {
	ctx, cancel := context.WithTimeout(ctx, natsWithin)
	defer cancel()
	lister := n.js.StreamNames(ctx)
	for name := range lister.Name() {
		names = append(names, name)
	}
	switch {
	case lister.Err() != nil:
		n.skip("stream", "the streams cannot be listed: "+lister.Err().Error(), "name those to look at: --stream")
		return nil
	case len(names) == 0:
		n.fail("stream", "there is no stream", "nothing can be published", n.streamAdd("TOPIC"))
	case len(names) > mostStreams:
		n.skip("stream", fmt.Sprintf("there are %d streams, and the outbox names no topic", len(names)), "name those to look at: --stream or --topic")
		return nil
	}
	slices.Sort(names)
	return names
}
