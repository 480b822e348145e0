package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/outbox"
)

const (
	// topicTrust is for how long a topic is believed to be there.
	topicTrust = 10 * time.Second

	// deliveryTimeout is for how long a client tries to deliver a record, whether
	// or not somebody still waits for it.
	deliveryTimeout = 10 * time.Second
)

// A producer sends records with a client of its own, made from the user's when it
// is first needed.
type producer struct {
	mu     sync.Mutex
	client *kgo.Client
	single *kgo.Client // for records that have to be alone in their batch
	closed bool
	topics map[string]time.Time // when each was last seen

	log *slog.Logger // hears what can be lost with a topic; nil: nobody does

	limitsMu sync.Mutex
	limits   map[string]limits // of topics that were asked for theirs

	alone chan struct{} // has room for the one who uses single
}

// open returns the client. owner names the field's struct in errors. log may be nil.
func (p *producer) open(owner string, base *kgo.Client, log *slog.Logger) (*kgo.Client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return nil, ErrClosed
	case p.client != nil:
		return p.client, nil
	}
	if err := checkProducer(owner, base); err != nil {
		return nil, err
	}
	client, err := newProducer(base, kgo.ProducerBatchMaxBytesFn(p.batchLimit(base)))
	if err != nil {
		return nil, fmt.Errorf("%s.Client: %w", owner, err)
	}
	single, err := newProducer(base, kgo.ProducerBatchMaxBytesFn(singleLimit(base)))
	if err != nil {
		client.Close()
		return nil, fmt.Errorf("%s.Client: %w", owner, err)
	}
	p.client, p.single, p.log = client, single, log
	p.topics, p.alone = make(map[string]time.Time), make(chan struct{}, 1)
	return p.client, nil
}

// newProducer makes a client. It connects when it is first used.
func newProducer(base *kgo.Client, more ...kgo.Opt) (*kgo.Client, error) {
	opts := []kgo.Opt{
		kgo.ProducerLinger(0), // whoever waits has nothing to add
		kgo.DialTimeout(dialTimeout),
		kgo.RecordDeliveryTimeout(deliveryTimeout),
		// Together they are how long an answer is waited for, 20 seconds unless set.
		// With one record that is refused the client fails all that wait behind it,
		// also those in a request that it is about to write; that one then goes out
		// empty, and Kafka 4.4 does not answer such a request (franz-go 1.22.2).
		kgo.ProduceRequestTimeout(3 * time.Second),
		kgo.RequestTimeoutOverhead(5 * time.Second),
	}
	opts = append(opts, base.Opts()...)
	opts = append(opts, more...)
	return newClient(append(opts,
		kgo.RequiredAcks(kgo.AllISRAcks()),
		// Otherwise a record that may or may not have arrived would stay in the
		// client until that is known, however long after deliveryTimeout.
		kgo.AllowIdempotentProduceCancellation(),
	))
}

func (p *producer) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, client := range []*kgo.Client{p.client, p.single} {
		if client != nil {
			client.Close()
		}
	}
	p.client, p.single = nil, nil
	return nil
}

// send sends records and returns one error for each, in the terms of package
// outbox: nil once all replicas that are in sync have it. A nil record's error
// stays what it is in errs. It returns at the latest when ctx ends.
func (p *producer) send(ctx context.Context, client *kgo.Client, records []*kgo.Record, errs []error) {
	p.excludeMissing(ctx, client, records, errs)
	p.excludeKeyless(records, errs)
	transmit(ctx, client, records, errs)
	for i, err := range errs {
		if records[i] != nil && isRefusal(err) {
			p.sendAlone(ctx, records[i:i+1], errs[i:i+1])
		}
	}
	gone := make(map[string]bool)
	for i, err := range errs {
		if records[i] == nil || err == nil {
			continue
		}
		errs[i] = produceError(client, records[i], err)
		if errors.Is(err, kerr.UnknownTopicID) || errors.Is(err, kerr.UnknownTopicOrPartition) {
			gone[records[i].Topic] = true
		}
	}
	p.forget(gone)
	p.forgetLimits(gone)
}

// sendAlone sends a record that was refused once more. The brokers refuse a batch
// of records as a whole, also with those of other callers; only a record that is
// alone in its batch is known to be the one that they do not like.
func (p *producer) sendAlone(ctx context.Context, record []*kgo.Record, err []error) {
	select {
	case p.alone <- struct{}{}:
	case <-ctx.Done():
		err[0] = context.Cause(ctx)
		return
	}
	p.mu.Lock()
	single := p.single
	p.mu.Unlock()
	if single == nil {
		<-p.alone
		err[0] = ErrClosed // and not a refusal, which may be another record's
		return
	}
	done := make(chan error, 1)
	single.Produce(context.WithoutCancel(ctx), copied(record[0]), func(_ *kgo.Record, err error) {
		<-p.alone // not before, even if nobody waits any more: the next would not be alone
		done <- err
	})
	select {
	case err[0] = <-done:
	case <-ctx.Done():
		err[0] = context.Cause(ctx)
	}
}

// transmit sends records at once and waits for what becomes of each, or until ctx
// ends. The client is not told of ctx: with a record that is given up it gives up
// all that wait behind it for the same partition, also those of other callers.
func transmit(ctx context.Context, client *kgo.Client, records []*kgo.Record, errs []error) {
	waiting := 0
	for i, r := range records {
		if r != nil {
			errs[i] = errUnconfirmed
			waiting++
		}
	}
	results := make(chan result, waiting) // room for those that come too late
	go produce(ctx, client, slices.Clone(records), results)
	for ; waiting > 0; waiting-- {
		select {
		case r := <-results:
			errs[r.i] = r.err
		case <-ctx.Done():
			select { // what has come in the same moment
			case r := <-results:
				errs[r.i] = r.err
			default:
				giveUp(ctx, errs)
				return
			}
		}
	}
}

// A result is what became of a record.
type result struct {
	i   int
	err error
}

// produce hands records to the client, which makes it wait while too many are
// under way.
func produce(ctx context.Context, client *kgo.Client, records []*kgo.Record, results chan<- result) {
	for i, r := range records {
		if r == nil {
			continue
		}
		if ctx.Err() != nil {
			return
		}
		client.Produce(context.WithoutCancel(ctx), copied(r), func(_ *kgo.Record, err error) { results <- result{i, err} })
	}
}

// copied returns a record to send. The client fills it in, so that another attempt
// needs another one.
func copied(r *kgo.Record) *kgo.Record {
	return &kgo.Record{Topic: r.Topic, Key: r.Key, Value: r.Value, Headers: r.Headers}
}

var errUnconfirmed = errors.New("not acknowledged yet")

func giveUp(ctx context.Context, errs []error) {
	for i, err := range errs {
		if err == errUnconfirmed {
			errs[i] = context.Cause(ctx)
		}
	}
}

// excludeMissing sorts out the records whose topic is not there, which the client
// would take many seconds to find out. Their records become nil.
func (p *producer) excludeMissing(ctx context.Context, client *kgo.Client, records []*kgo.Record, errs []error) {
	unknown := p.untrusted(records)
	if auto, _ := client.OptValue(kgo.AllowAutoTopicCreation).(bool); auto || len(unknown) == 0 {
		return
	}
	found, err := lookUp(ctx, client, unknown)
	if err != nil {
		for i, r := range records {
			if r != nil {
				records[i], errs[i] = nil, fmt.Errorf("%w: %w", outbox.ErrUnavailable, err)
			}
		}
		return
	}
	p.learnLimits(ctx, client, found)
	p.warn(ctx, found)
	p.trust(found)
	for i, r := range records {
		if r == nil {
			continue
		}
		if err := found[r.Topic].err; err != nil && !retriable(err) || errors.Is(err, kerr.UnknownTopicOrPartition) {
			records[i], errs[i] = nil, err
		}
	}
}

// untrusted returns the topics that were not seen for a while.
func (p *producer) untrusted(records []*kgo.Record) (topics []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	asked := make(map[string]bool)
	for _, r := range records {
		if r != nil && !asked[r.Topic] && time.Since(p.topics[r.Topic]) > topicTrust {
			asked[r.Topic] = true
			topics = append(topics, r.Topic)
		}
	}
	return topics
}

func (p *producer) trust(found map[string]topicState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for topic, state := range found {
		if state.err == nil {
			p.topics[topic] = time.Now()
		}
	}
}

// forget has topics looked up again that were deleted, or deleted and made again:
// the clients would not send to another one of the same name.
func (p *producer) forget(topics map[string]bool) {
	if len(topics) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	names := slices.Collect(maps.Keys(topics))
	for _, name := range names {
		delete(p.topics, name)
	}
	for _, client := range []*kgo.Client{p.client, p.single} {
		if client != nil {
			go client.PurgeTopicsFromProducing(names...) // which may wait for a broker
		}
	}
}

// isRefusal reports whether the brokers will not take a record as it is.
func isRefusal(err error) bool {
	for _, refusal := range []error{
		kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.InvalidRecord, kerr.InvalidTopicException,
	} {
		if errors.Is(err, refusal) {
			return true
		}
	}
	return false
}

// produceError says what an error of the client means for the message.
func produceError(client *kgo.Client, r *kgo.Record, err error) error {
	switch {
	case errors.Is(err, kerr.MessageTooLarge), errors.Is(err, kerr.RecordListTooLarge):
		return fmt.Errorf("%w: its %d bytes are more than the topic takes, see its max.message.bytes%s: %w", outbox.ErrRefused, size(r), ownLimit(client, r), err)
	case errors.Is(err, kerr.InvalidRecord):
		return fmt.Errorf("%w: %w", errKeyless, err)
	case isRefusal(err):
		return fmt.Errorf("%w: %w", outbox.ErrRefused, err)
	case errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.TopicAuthorizationFailed):
		return topicError(r.Topic, err)
	case errors.Is(err, kerr.UnknownTopicID):
		return fmt.Errorf("topic %q was deleted and made again: %w", r.Topic, err)
	case errors.Is(err, kerr.PolicyViolation), errors.Is(err, kerr.CorruptMessage):
		return err
	case errors.Is(err, kerr.InvalidTimestamp):
		return fmt.Errorf("%w: %w: the clock of this machine is wrong, or the topic's message.timestamp.after.max.ms too small", outbox.ErrUnavailable, err)
	}
	return unavailable(client, err)
}

// unavailable marks an error that is not the message's fault.
func unavailable(client *kgo.Client, err error) error {
	for _, late := range []error{context.DeadlineExceeded, context.Canceled, kgo.ErrRecordTimeout} {
		if errors.Is(err, late) {
			return fmt.Errorf("%w: no acknowledgement in time: %w", outbox.ErrUnavailable, err)
		}
	}
	return fmt.Errorf("%w: %w", outbox.ErrUnavailable, unreachable(client, err))
}
