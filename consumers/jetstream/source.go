package jetstream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
)

// ephemeralLife is how long the server keeps the consumer of a subscription
// without a group that shows no sign of life: through an outage, but not for
// ever if the process was killed.
const ephemeralLife = 5 * time.Minute

// A source is the consumer on the server that a subscription pulls from.
type source struct {
	stream   string
	created  time.Time // of the stream
	retained bool      // messages stay in the stream when they are acknowledged
	consumer string
	beat     time.Duration // between two signs of life of a message
	batch    int           // most messages in one pull request; 0: any number
	expires  time.Duration // of a pull request
}

// same tells whether it is the same stream, so that the numbers of messages mean
// the same.
func (src *source) same(other *source) bool {
	return src.stream == other.stream && src.created.Equal(other.created)
}

// open finds the stream and the consumer, creates what is missing and allowed
// to be created, and refuses what would lose messages. known is nil at first,
// and later the source as it was, with the sequence to go on from should a
// consumer without a group be gone.
func (s *subscription) open(ctx context.Context, known *source, from uint64) (*source, error) {
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	stream, err := s.findStream(ctx)
	if err != nil {
		return nil, err
	}
	consumer, err := s.findConsumer(ctx, stream, known, from)
	if err != nil {
		return nil, err
	}
	info, cfg := stream.CachedInfo(), consumer.CachedInfo().Config
	src := &source{
		stream:   info.Config.Name,
		created:  info.Created,
		retained: info.Config.Retention == natsjs.LimitsPolicy,
		consumer: consumer.CachedInfo().Name,
		batch:    cfg.MaxRequestBatch,
		expires:  pullExpires,
	}
	s.warn(ctx, info)
	if cfg.MaxRequestExpires > 0 {
		src.expires = min(src.expires, cfg.MaxRequestExpires)
	}
	src.beat = max(slices.Min(append(slices.Clone(cfg.BackOff), cfg.AckWait))/3, time.Millisecond)
	return src, nil
}

// findStream finds the stream for the topic, or creates it.
func (s *subscription) findStream(ctx context.Context) (natsjs.Stream, error) {
	stream, err := s.existingStream(ctx)
	if s.createStream == nil || !errors.Is(err, natsjs.ErrStreamNotFound) {
		return stream, err
	}
	cfg := s.createStream(s.topic)
	if _, err := s.js.CreateStream(ctx, cfg); err != nil {
		// Another process may have created it a moment ago, from another
		// configuration.
		if stream, err := s.existingStream(ctx); err == nil {
			return stream, nil
		}
		return nil, fmt.Errorf("create stream %q: %w", cfg.Name, explained(err))
	}
	return s.existingStream(ctx)
}

func (s *subscription) existingStream(ctx context.Context) (natsjs.Stream, error) {
	names, err := s.capturing(ctx)
	if err != nil {
		return nil, fmt.Errorf("look up the stream of %q: %w", s.topic, explained(err))
	}
	name := s.stream
	if name == "" {
		switch len(names) {
		case 0:
			return nil, fmt.Errorf("%w, or set Subscriber.CreateStream", noStream(s.topic))
		case 1:
			name = names[0]
		default:
			return nil, fmt.Errorf("streams %q all capture subject %q: set Subscriber.Stream to the one to read", names, s.topic)
		}
	}
	stream, err := s.js.Stream(ctx, name)
	switch {
	case errors.Is(err, natsjs.ErrStreamNotFound):
		return nil, fmt.Errorf("stream %q: %w: create it, for example with `nats stream add %s --subjects %q`, or set Subscriber.CreateStream", name, err, name, s.topic)
	case err != nil:
		return nil, fmt.Errorf("look up stream %q: %w", name, explained(err))
	case !slices.Contains(names, name):
		return stream, s.mayHold(ctx, stream)
	}
	return stream, nil
}

// capturing returns the names of the streams that capture the topic.
func (s *subscription) capturing(ctx context.Context) (names []string, err error) {
	lister := s.js.StreamNames(ctx, natsjs.WithStreamListSubject(s.topic))
	for name := range lister.Name() {
		names = append(names, name)
	}
	return names, lister.Err()
}

// noStream is the error for a subject that no stream captures.
type noStream string

func (subject noStream) Error() string {
	return fmt.Sprintf("no stream captures subject %q: create one, for example with `nats stream add NAME --subjects %q`", string(subject), string(subject))
}

func (noStream) Unwrap() error { return natsjs.ErrStreamNotFound }

// mayHold tells whether a stream that does not capture the topic may have
// messages of it nevertheless: from other streams, or from before its subjects
// were changed.
func (s *subscription) mayHold(ctx context.Context, stream natsjs.Stream) error {
	cfg := stream.CachedInfo().Config
	if cfg.Mirror != nil || len(cfg.Sources) > 0 || cfg.SubjectTransform != nil {
		return nil
	}
	info, err := stream.Info(ctx, natsjs.WithSubjectFilter(s.topic))
	if err != nil {
		return fmt.Errorf("look up stream %q: %w", cfg.Name, explained(err))
	}
	if len(info.State.Subjects) == 0 {
		return fmt.Errorf("stream %q captures %q, which does not include subject %q: no message would ever arrive; add the subject to the stream, or subscribe to another", cfg.Name, cfg.Subjects, s.topic)
	}
	return nil
}

// findConsumer finds the consumer, and creates it or brings it up to date.
func (s *subscription) findConsumer(ctx context.Context, stream natsjs.Stream, known *source, from uint64) (natsjs.Consumer, error) {
	info := stream.CachedInfo()
	cfg := s.newConsumer()
	if s.group == "" && from > 0 && known.retained && info.Created.Equal(known.created) {
		cfg.DeliverPolicy = natsjs.DeliverByStartSequencePolicy
		cfg.OptStartSeq = from
	}
	s.adjust(&cfg, info.Config.ConsumerLimits)
	name := cfg.Name
	if name == "" {
		name = cfg.Durable
	}
	where := info.Config.Name + " " + name // as the nats tool takes them
	found, err := stream.Consumer(ctx, name)
	if err == nil {
		// What was set on the server, and cannot be changed or is not ours to
		// change, stays.
		cfg = cloned(found.CachedInfo().Config)
		s.adjust(&cfg, info.Config.ConsumerLimits)
	} else if !errors.Is(err, natsjs.ErrConsumerNotFound) {
		return nil, fmt.Errorf("consumer %s: %w", where, explained(err))
	}
	if err := s.refuse(where, found, &cfg); err != nil {
		return nil, fmt.Errorf("consumer %s %w", where, err)
	}
	if found != nil && reflect.DeepEqual(cfg, found.CachedInfo().Config) {
		return found, nil
	}
	if found == nil && known != nil {
		s.log.Warn("oncemill: jetstream: the consumer is gone, making it anew", "topic", s.topic, "consumer", where)
	}
	consumer, err := stream.CreateOrUpdateConsumer(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("configure consumer %s: %w", where, explained(err))
	}
	return consumer, nil
}

// newConsumer is the configuration of a consumer that is not there yet.
func (s *subscription) newConsumer() natsjs.ConsumerConfig {
	cfg := natsjs.ConsumerConfig{
		FilterSubject: s.topic,
		DeliverPolicy: natsjs.DeliverAllPolicy,
		AckPolicy:     natsjs.AckExplicitPolicy,
		AckWait:       DefaultAckWait,
		MaxDeliver:    -1,
	}
	if s.group != "" {
		cfg.Durable = durableName(s.group, s.topic)
		return cfg
	}
	cfg.Name = s.name
	cfg.InactiveThreshold = ephemeralLife
	return cfg
}

// cloned makes a copy that Configure may change.
func cloned(cfg natsjs.ConsumerConfig) natsjs.ConsumerConfig {
	cfg.BackOff = slices.Clone(cfg.BackOff)
	cfg.FilterSubjects = slices.Clone(cfg.FilterSubjects)
	cfg.PriorityGroups = slices.Clone(cfg.PriorityGroups)
	cfg.Metadata = maps.Clone(cfg.Metadata)
	return cfg
}

// leastRoom is for how many messages a consumer has room that were delivered and
// not acknowledged. Those that wait for their next delivery after a nack are most
// of them: when they fill the room, no other message is delivered.
const leastRoom = 50_000

// adjust sets what depends on the Subscriber's fields, within what the stream
// allows to its consumers.
func (s *subscription) adjust(cfg *natsjs.ConsumerConfig, limits natsjs.StreamConsumerLimits) {
	if s.ackWait > 0 {
		cfg.AckWait = s.ackWait
	}
	// Messages that wait for their next delivery after a nack count too, so with
	// many in flight there has to be room for them. If somebody has made more
	// room, it stays.
	if room := max(leastRoom, 8*s.maxInFlight); cfg.MaxAckPending >= 0 && cfg.MaxAckPending < room {
		cfg.MaxAckPending = room
	}
	if limits.MaxAckPending > 0 && (cfg.MaxAckPending < 0 || cfg.MaxAckPending > limits.MaxAckPending) {
		cfg.MaxAckPending = limits.MaxAckPending
	}
	if s.maxInFlight == 1 {
		cfg.MaxAckPending = 1
	}
	if limits.InactiveThreshold > 0 {
		cfg.InactiveThreshold = min(cfg.InactiveThreshold, limits.InactiveThreshold)
	}
	if s.configure == nil {
		return
	}
	if cfg.Metadata == nil {
		cfg.Metadata = make(map[string]string)
	}
	s.configure(cfg)
}

// refuse finds what would lose messages or never deliver them. found is nil for
// a consumer that is to be created.
func (s *subscription) refuse(where string, found natsjs.Consumer, cfg *natsjs.ConsumerConfig) error {
	if found != nil && !slices.Contains(filters(cfg), s.topic) && s.configure == nil {
		return fmt.Errorf("is for subjects %q, not for %q: use another Group, or remove that consumer", filters(cfg), s.topic)
	}
	switch {
	case cfg.MaxDeliver > 0:
		return fmt.Errorf("has MaxDeliver %d: a message that fails so often, for example while the database is away, would never be delivered again; set it to -1 with `nats consumer edit %s --max-deliver=-1`, or in Subscriber.Configure", cfg.MaxDeliver, where)
	case cfg.AckPolicy != natsjs.AckExplicitPolicy:
		return fmt.Errorf("has AckPolicy %v, but each message has to be acknowledged: that cannot be changed, use another Group or remove that consumer", cfg.AckPolicy)
	case cfg.HeadersOnly:
		return errors.New("has HeadersOnly: the messages would have no payload")
	case len(cfg.PriorityGroups) > 0:
		return errors.New("has PriorityGroups, which are not supported: use another Group, or remove that consumer")
	}
	return nil
}

func filters(cfg *natsjs.ConsumerConfig) []string {
	if cfg.FilterSubject != "" {
		return []string{cfg.FilterSubject}
	}
	return cfg.FilterSubjects
}

// explained adds to errors of nats.go what they do not say.
func explained(err error) error {
	switch {
	case errors.Is(err, nats.ErrNoResponders), errors.Is(err, natsjs.ErrJetStreamNotEnabled):
		return fmt.Errorf("%w: the server has JetStream disabled, or it is not ready yet", err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: the server does not answer", err)
	}
	return err
}
