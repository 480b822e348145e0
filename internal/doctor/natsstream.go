package doctor

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/internal/durable"
)

func (n *NATS) lookAtStream(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(ctx, 4*natsWithin)
	defer cancel()
	stream, err := n.js.Stream(ctx, name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		n.fail("stream", fmt.Sprintf("there is no stream %q", name), "", "see `nats stream ls` for those there are")
		return
	case err != nil:
		n.skip("stream", fmt.Sprintf("stream %q cannot be looked at: %v", name, err), "")
		return
	}
	info := stream.CachedInfo()
	before := len(n.all)
	n.lookAtCopies(info)
	n.lookAtWindow(info)
	n.lookAtAge(info)
	n.lookAtRoom(info)
	n.lookAtInterest(info)
	n.lookAtConsumers(ctx, stream)
	if len(n.all) == before {
		c := info.Config
		n.ok("stream", "%q: %s on %s storage, messages kept for %s, repetitions dropped for %s, %s", name, counted(int64(c.Replicas), 0, "replica", "replicas"), strings.ToLower(c.Storage.String()), durable.Lasting(c.MaxAge), seconds(c.Duplicates),
			counted(int64(info.State.Consumers), 0, "consumer", "consumers"))
	}
}

// stream is what there is to warn of.
func (n *NATS) stream(info *jetstream.StreamInfo) durable.Stream {
	c := info.Config
	return durable.Stream{
		Name: c.Name, Memory: c.Storage == jetstream.MemoryStorage, Replicas: c.Replicas, Clustered: n.clustered,
		Kept: c.MaxAge, Work: c.Retention == jetstream.WorkQueuePolicy,
	}
}

func (n *NATS) lookAtCopies(info *jetstream.StreamInfo) {
	n.tell(n.stream(info).Copies())
	if down := missing(info); down > 0 {
		n.warn("replicas", fmt.Sprintf("stream %q: %s offline or behind", info.Config.Name, counted(int64(down), 0, "replica is", "replicas are")), "one more, and nothing can be published", "see `nats stream info "+info.Config.Name+"`")
	}
}

// missing counts the replicas that are not there.
func missing(info *jetstream.StreamInfo) (n int) {
	if info.Cluster == nil {
		return 0
	}
	for _, r := range info.Cluster.Replicas {
		if r.Offline || !r.Current {
			n++
		}
	}
	return n
}

// leastWindow is how long after it a relay that freezes or dies may have its rows
// published again: until Postgres has ended its transaction, with the default
// --publish-timeout, and another relay has come to them.
const leastWindow = 30 * time.Second

func (n *NATS) lookAtWindow(info *jetstream.StreamInfo) {
	if c := info.Config; c.Duplicates < leastWindow {
		n.warn("duplicate window", fmt.Sprintf("stream %q drops repetitions for %v only", c.Name, c.Duplicates),
			"a relay that dies after publishing has its rows published again, up to 21 seconds later with the default --publish-timeout. Consumers with Once or Guard drop them too; others see them twice",
			"nats stream edit "+c.Name+" --dupe-window 2m")
	}
}

// lookAtAge compares what the stream can send again with the claims that are kept.
func (n *NATS) lookAtAge(info *jetstream.StreamInfo) {
	n.tell(n.stream(info).Horizon(n.Briefing.claims()))
}

// claims are those that have to be there when a message comes again.
func (b Briefing) claims() durable.Claims { return durable.Claims{Kept: b.Kept, Consumer: b.Consumer} }

func (n *NATS) lookAtRoom(info *jetstream.StreamInfo) {
	c := info.Config
	n.lookAtLimit("limits", fmt.Sprintf("size of stream %q (discard %s)", c.Name, c.Discard), info.State.Bytes, c.MaxBytes)
	n.lookAtLimit("limits", fmt.Sprintf("number of messages of stream %q (discard %s)", c.Name, c.Discard), info.State.Msgs, c.MaxMsgs)
	if c.MaxMsgSize > 0 && c.MaxMsgSize < 64<<10 {
		n.warn("limits", fmt.Sprintf("stream %q takes messages of %s at most", c.Name, size(int64(c.MaxMsgSize))), "larger ones are parked in the outbox; a dead letter is up to 2 KiB larger than its message", "nats stream edit "+c.Name+" --max-msg-size -1")
	}
}

func (n *NATS) lookAtInterest(info *jetstream.StreamInfo) {
	if c := info.Config; c.Retention == jetstream.InterestPolicy && info.State.Consumers == 0 {
		n.warn("consumers", fmt.Sprintf("stream %q keeps messages for its consumers only, and has none", c.Name), "what is published is acknowledged and dropped", "start what consumes it, or use --retention limits")
	}
}

// shortAckWait is what a handler and its way back take on a busy machine. The subscriber
// keeps extending it while a handler runs.
const shortAckWait = 5 * time.Second

func (n *NATS) lookAtConsumers(ctx context.Context, stream jetstream.Stream) {
	lister := stream.ListConsumers(ctx)
	for info := range lister.Info() {
		if info.Config.Durable == "" { // it is some program's for the moment, as that of an ordered consumer
			continue
		}
		n.lookAtConsumer(info)
	}
	if err := lister.Err(); err != nil && !errors.Is(err, jetstream.ErrEndOfData) {
		n.skip("consumers", fmt.Sprintf("the consumers of stream %q cannot be listed: %v", stream.CachedInfo().Config.Name, err), "")
	}
}

func (n *NATS) lookAtConsumer(info *jetstream.ConsumerInfo) {
	c, who := info.Config, fmt.Sprintf("consumer %q of stream %q", info.Name, info.Stream)
	edit := "nats consumer edit " + info.Stream + " " + info.Name
	if c.MaxDeliver > 0 {
		n.warn("consumers", fmt.Sprintf("%s gives a message up after %s", who, counted(int64(c.MaxDeliver), 0, "delivery", "deliveries")),
			"deliveries that fail while Postgres is away count too: then messages are stuck, neither handled nor a dead letter. consumers/jetstream refuses to start on it",
			edit+" --max-deliver -1; consumers.Stack gives up what keeps failing")
	}
	if c.AckPolicy != jetstream.AckExplicitPolicy {
		n.warn("consumers", fmt.Sprintf("%s has the ack policy %s", who, c.AckPolicy), "messages count as handled that are not", "make it again with --ack explicit")
		return
	}
	n.lookAtProgress(info, who)
	if c.AckWait < shortAckWait {
		n.warn("consumers", fmt.Sprintf("%s sends a message again after %v", who, c.AckWait), "handlers that are not done by then have it come twice at a time. Once makes one wait for the other, but both take a connection", edit+" --wait 30s")
	}
}

// lookAtProgress looks at whether a consumer's messages are received.
func (n *NATS) lookAtProgress(info *jetstream.ConsumerInfo, who string) {
	waiting := counted(int64(min(info.NumPending, math.MaxInt64)), 0, "message waits", "messages wait") //nolint:gosec // it is bounded
	switch c := info.Config; {
	case c.MaxAckPending > 0 && info.NumAckPending >= c.MaxAckPending && info.NumPending > 0:
		n.warn("consumers", fmt.Sprintf("%s has %d messages that are not acknowledged, as many as it may have, and %s", who, info.NumAckPending, waiting),
			"until some are, it hands out nothing", "see what its workers do with them (Postgres away, handlers that fail), or allow more: --max-pending")
	case c.DeliverSubject == "" && info.NumPending > 0 && info.NumWaiting == 0 && info.NumAckPending == 0:
		n.warn("consumers", fmt.Sprintf("%s: %s, and nobody receives", who, waiting), "what they should cause does not happen", "start its workers; or if the consumer is not needed any more, delete it: nats consumer rm "+info.Stream+" "+info.Name)
	}
}

// hostOf is the host of a URL.
func hostOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		host, _, _ := net.SplitHostPort(address)
		return host
	}
	return u.Hostname()
}
