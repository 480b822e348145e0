package jetstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/outbox"
)

const (
	// maxUnconfirmed and maxUnconfirmedBytes bound what of a batch is on its way
	// to the server, which refuses more than it can queue.
	maxUnconfirmed      = 4000
	maxUnconfirmedBytes = 32 << 20
)

// A Sink lets an outbox.Relay publish to JetStream. It publishes a whole batch at
// once and then waits for the acknowledgements.
//
// Each message is sent with the row's DedupID as its Nats-Msg-Id, so that a row
// which is published twice within the stream's duplicate window is stored once.
// Since that is not the message's UUID, the same message may go to several
// subjects of a stream.
//
// A Sink can be used from many goroutines. It keeps nothing between two batches.
type Sink struct {
	// Conn is the connection. Required.
	Conn *nats.Conn

	// ServerHeaders has metadata sent that begin with "Nats-": see
	// Publisher.ServerHeaders. Nats-Msg-Id is always the row's DedupID.
	ServerHeaders bool

	// APIPrefix is that of the JetStream API; see Subscriber.APIPrefix.
	APIPrefix string
}

var _ outbox.Sink = (*Sink)(nil)

// PublishBatch publishes rows and returns one error for each, nil for those that
// a stream has acknowledged:
//
//   - outbox.ErrRefused: the row is larger than the server or the stream takes,
//     its topic is no subject, or a header cannot carry its metadata;
//   - outbox.ErrUnavailable: not connected, no acknowledgement before ctx ended,
//     or the stream is there but has no leader;
//   - another error: no stream captures the subject, the stream is full.
func (s *Sink) PublishBatch(ctx context.Context, rows []outbox.Row) []error {
	errs := make([]error, len(rows))
	b, err := s.begin(rows, errs)
	if err != nil {
		for i := range errs {
			errs[i] = fmt.Errorf("oncemill: jetstream: %w: %w", outbox.ErrUnavailable, err)
		}
		return errs
	}
	defer b.end()
	for i := range rows {
		if err = b.publish(ctx, i); err != nil {
			break
		}
	}
	for err == nil && b.waiting > 0 {
		err = b.receive(ctx)
	}
	b.abandon(err)
	s.explain(ctx, b)
	for i, err := range errs {
		if err != nil {
			errs[i] = fmt.Errorf("oncemill: jetstream: outbox row %d to %q: %w", rows[i].ID, rows[i].Topic, err)
		}
	}
	return errs
}

// A batch is one PublishBatch under way. nats.go's PublishMsgAsync is not used:
// its acknowledgements have a timeout for a whole JetStream context or none, it
// keeps what was given up, and it repeats messages out of order.
type batch struct {
	sink    *Sink
	rows    []outbox.Row
	errs    []error
	sent    []*nats.Msg // by row; nil where there is nothing to wait for any more
	waiting int         // acknowledgements
	bytes   int64       // of these
	inbox   string      // with a dot; the row's index follows
	sub     *nats.Subscription
	acks    chan *nats.Msg
	lost    chan nats.Status // the connection
}

var errUnconfirmed = errors.New("not published")

func (s *Sink) begin(rows []outbox.Row, errs []error) (*batch, error) {
	if s.Conn == nil {
		return nil, errors.New("Sink.Conn is nil: set it to a *nats.Conn")
	}
	b := &batch{
		sink:  s,
		rows:  rows,
		errs:  errs,
		sent:  make([]*nats.Msg, len(rows)),
		inbox: s.Conn.NewInbox() + ".",
		acks:  make(chan *nats.Msg, len(rows)+1), // nats.go drops what it has no room for
		lost:  s.Conn.StatusChanged(nats.RECONNECTING, nats.CLOSED),
	}
	for i := range errs {
		errs[i] = errUnconfirmed
	}
	// While it is not connected, nats.go would buffer, and publish when nobody
	// waits any more.
	if !s.Conn.IsConnected() {
		b.end()
		return nil, fmt.Errorf("not connected: %v", s.Conn.Status())
	}
	var err error
	if b.sub, err = s.Conn.ChanSubscribe(b.inbox+"*", b.acks); err != nil {
		b.end()
		return nil, err
	}
	return b, nil
}

func (b *batch) end() {
	b.sink.Conn.RemoveStatusListener(b.lost)
	if b.sub != nil {
		_ = b.sub.Unsubscribe()
	}
}

// publish sends row i. An error ends the batch; one that is the row's own fault
// is only noted.
func (b *batch) publish(ctx context.Context, i int) error {
	row := &b.rows[i]
	raw, err := encode(row.Topic, row.UUID, row.Metadata, row.Payload, b.sink.ServerHeaders)
	if err == nil {
		raw.Header[nats.MsgIdHdr] = []string{row.DedupID}
		err = checkSize(raw, b.sink.Conn.MaxPayload())
	}
	if err != nil {
		b.errs[i] = err
		return nil
	}
	n := size(raw)
	for b.waiting >= maxUnconfirmed || b.waiting > 0 && b.bytes+n > maxUnconfirmedBytes {
		if err := b.receive(ctx); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	raw.Reply = b.inbox + strconv.Itoa(i)
	if err := b.sink.Conn.PublishMsg(raw); err != nil {
		err = publishError(raw, err)
		if !errors.Is(err, outbox.ErrRefused) {
			return err
		}
		b.errs[i] = err
		return nil
	}
	b.sent[i] = raw
	b.waiting++
	b.bytes += n
	return nil
}

// receive waits for one acknowledgement.
func (b *batch) receive(ctx context.Context) error {
	select {
	case ack := <-b.acks:
		b.confirm(ack)
		return nil
	case <-b.lost:
		return nats.ErrDisconnected
	case <-ctx.Done():
		return fmt.Errorf("no acknowledgement in time: %w", context.Cause(ctx))
	}
}

// confirm notes what the broker says about a row.
func (b *batch) confirm(ack *nats.Msg) {
	i, err := strconv.Atoi(strings.TrimPrefix(ack.Subject, b.inbox))
	if err != nil || i < 0 || i >= len(b.sent) || b.sent[i] == nil {
		return
	}
	b.errs[i] = answer(b.sent[i], ack)
	b.waiting--
	b.bytes -= size(b.sent[i])
	b.sent[i] = nil
}

// abandon notes why the rest was not published, or why that is not known.
func (b *batch) abandon(err error) {
	if err == nil {
		return
	}
	for len(b.acks) > 0 { // those that have arrived
		b.confirm(<-b.acks)
	}
	if !errors.Is(err, outbox.ErrUnavailable) {
		err = fmt.Errorf("%w: %w", outbox.ErrUnavailable, err)
	}
	for i := range b.errs {
		if b.errs[i] == errUnconfirmed {
			b.errs[i] = err
		}
	}
}

// answer reads a stream's acknowledgement.
func answer(raw, ack *nats.Msg) error {
	if len(ack.Data) == 0 && ack.Header.Get("Status") == "503" {
		return nats.ErrNoResponders
	}
	var body struct {
		natsjs.PubAck
		Error *natsjs.APIError `json:"error"`
	}
	switch err := json.Unmarshal(ack.Data, &body); {
	case err != nil:
		return fmt.Errorf("%w: %w", natsjs.ErrInvalidJSAck, err)
	case body.Error != nil:
		return answerError(raw, body.Error)
	case body.Stream == "":
		return natsjs.ErrInvalidJSAck
	}
	return nil
}

// explain finds out why nobody received a row: there may be no stream, or a
// stream without a leader, which is not the row's fault.
func (s *Sink) explain(ctx context.Context, b *batch) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	why := make(map[string]error)
	for i, err := range b.errs {
		if err != nats.ErrNoResponders {
			continue
		}
		topic := b.rows[i].Topic
		if why[topic] == nil {
			why[topic] = s.unanswered(ctx, topic)
		}
		b.errs[i] = why[topic]
	}
}

func (s *Sink) unanswered(ctx context.Context, topic string) error {
	set := settings{conn: s.Conn}
	if err := set.setAPI(s.APIPrefix); err != nil {
		return err
	}
	_, err := set.js.StreamNameBySubject(ctx, topic)
	switch {
	case errors.Is(err, natsjs.ErrStreamNotFound):
		return noStream(topic)
	case err != nil:
		return fmt.Errorf("%w: %w", outbox.ErrUnavailable, explained(err))
	}
	return fmt.Errorf("%w: the stream does not answer", outbox.ErrUnavailable)
}
