package jetstream

import (
	"bytes"
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

// A batch is one PublishBatch under way. nats.go's PublishMsgAsync is not used:
// its acknowledgements have a timeout for a whole JetStream context or none, it
// keeps what was given up, and it repeats messages out of order.
type batch struct {
	sink    *Sink
	rows    []outbox.Row
	errs    []error
	encoder encoder
	sizes   []int64 // by row; 0 where there is nothing to wait for
	waiting int     // acknowledgements
	bytes   int64   // of these
	inbox   string  // with a dot; the row's index follows
	replies replies
	streams []string // that have acknowledged; few
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
		sink:    s,
		rows:    rows,
		errs:    errs,
		encoder: encoder{control: s.ServerHeaders, limit: s.Conn.MaxPayload()},
		sizes:   make([]int64, len(rows)),
		inbox:   s.Conn.NewInbox() + ".",
		acks:    make(chan *nats.Msg, len(rows)+1), // nats.go drops what it has no room for
		lost:    s.Conn.StatusChanged(nats.RECONNECTING, nats.CLOSED),
	}
	b.replies = newReplies(b.inbox, len(rows))
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
	raw, n, err := b.encoder.encode(&b.rows[i])
	if err != nil {
		b.errs[i] = err
		return nil
	}
	for b.waiting >= maxUnconfirmed || b.waiting > 0 && b.bytes+n > maxUnconfirmedBytes {
		if err := b.receive(ctx); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	raw.Reply = b.replies.subject(i)
	if err := b.sink.Conn.PublishMsg(raw); err != nil {
		err = publishError(raw, err)
		if !errors.Is(err, outbox.ErrRefused) {
			return err
		}
		b.errs[i] = err
		return nil
	}
	b.sizes[i] = n
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
	default: // a look at three channels takes longer
	}
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
	if err != nil || i < 0 || i >= len(b.sizes) || b.sizes[i] == 0 {
		return
	}
	b.errs[i] = b.answer(i, ack)
	b.waiting--
	b.bytes -= b.sizes[i]
	b.sizes[i] = 0
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

// answer reads a stream's acknowledgement of row i.
func (b *batch) answer(i int, ack *nats.Msg) error {
	if stream, ok := stored(ack.Data); ok {
		b.acknowledged(stream)
		return nil
	}
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
		raw, _, err := b.encoder.encode(&b.rows[i])
		if err != nil {
			return err
		}
		return answerError(raw, body.Error)
	case body.Stream == "":
		return natsjs.ErrInvalidJSAck
	}
	b.acknowledged([]byte(body.Stream))
	return nil
}

// acknowledged notes which streams do.
func (b *batch) acknowledged(stream []byte) {
	for _, known := range b.streams {
		if known == string(stream) {
			return
		}
	}
	b.streams = append(b.streams, string(stream))
}

// stored reports whether an acknowledgement is what nearly all are, and of which stream,
// without the detour through a struct.
func stored(ack []byte) (stream []byte, ok bool) {
	rest, ok := bytes.CutPrefix(ack, []byte(`{"stream":"`))
	name := bytes.IndexByte(rest, '"')
	if !ok || name < 1 || bytes.IndexByte(rest[:name], '\\') >= 0 {
		return nil, false
	}
	stream = rest[:name]
	rest, ok = bytes.CutPrefix(rest[name+1:], []byte(`,"seq":`))
	number := bytes.TrimLeft(rest, "0123456789")
	if !ok || len(number) == len(rest) {
		return nil, false
	}
	rest, _ = bytes.CutPrefix(number, []byte(`,"duplicate":true`))
	return stream, string(rest) == "}"
}

// replies are the subjects that acknowledgements come to, in one string.
type replies struct {
	all  string
	ends []int
}

func newReplies(inbox string, n int) replies {
	r := replies{ends: make([]int, n)}
	all := make([]byte, 0, n*(len(inbox)+5))
	for i := range n {
		all = strconv.AppendInt(append(all, inbox...), int64(i), 10)
		r.ends[i] = len(all)
	}
	r.all = string(all)
	return r
}

func (r replies) subject(i int) string {
	if i == 0 {
		return r.all[:r.ends[0]]
	}
	return r.all[r.ends[i-1]:r.ends[i]]
}
