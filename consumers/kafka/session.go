package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// handoverTimeout is for how long a partition that goes to another member is
// waited for, if a message of it is being handled. Fetching stands still
// meanwhile, also from partitions that stay.
const handoverTimeout = 3 * time.Second

// A session is the time that one client is a member of the group. Without a group
// it is the time that one client reads the topic.
//
// What is done by whom: poll fetches, run hands out, a goroutine for each message
// that was handed out waits for its ack or nack, keepCommitting commits, and the
// client's own goroutine calls assigned, revoked and lost. They share what mu
// guards.
type session struct {
	*subscription
	client  *kgo.Client
	abort   context.CancelFunc // ends all that the client waits for
	watch   *watch
	hard    context.Context // ends when the session is given up
	giveUp  context.CancelFunc
	workers sync.WaitGroup
	failed  chan error    // why the session cannot go on
	wake    chan struct{} // there may be something else to hand out
	dirty   chan struct{} // there may be something to commit
	resumed chan struct{} // what handlers need is back
	holding bool          // until then; touched by run alone

	committing sync.Mutex // held by the one who commits
	mu         sync.Mutex
	partitions map[int32]*partition
	order      []*partition // the same, in the order of their turns to hand out
	offered    *entry       // what run is about to hand out
	ending     bool         // nothing more is handed out
	drained    bool         // nothing is waited for any more
}

// begin looks for the topic and the group, and makes a client.
func (s *subscription) begin(ctx context.Context) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	if err := ensureTopic(ctx, s.base, s.topic, s.createTopic); err != nil {
		return nil, err
	}
	if err := checkAccess(ctx, s.base, s.group); err != nil {
		return nil, err
	}
	next := &session{
		subscription: s,
		watch:        &watch{log: s.log, topic: s.topic},
		failed:       make(chan error, 1),
		wake:         make(chan struct{}, 1),
		dirty:        make(chan struct{}, 1),
		resumed:      make(chan struct{}),
		partitions:   make(map[int32]*partition),
	}
	next.hard, next.giveUp = context.WithCancel(context.Background())
	life, abort := context.WithCancel(context.Background())
	next.abort = abort
	var err error
	if next.client, err = newClient(append(next.options(), kgo.WithContext(life))); err != nil {
		next.giveUp()
		abort()
		return nil, fmt.Errorf("Subscriber.Client: %w", err)
	}
	return next, nil
}

// options are the user's, between those that they may and may not change.
func (s *session) options() []kgo.Opt {
	opts := []kgo.Opt{
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.FetchMaxWait(maxWait),
		kgo.DialTimeout(dialTimeout),
	}
	opts = append(opts, s.base.Opts()...)
	opts = append(opts, kgo.ConsumeTopics(s.topic), kgo.WithHooks(s.watch))
	if s.group == "" {
		return opts
	}
	if id, _ := s.base.OptValue(kgo.InstanceID).(string); id != "" {
		// Each topic has a client of its own, and in a group each needs its own.
		opts = append(opts, kgo.InstanceID(id+"-"+s.topic))
	}
	return append(opts,
		kgo.ConsumerGroup(s.group),
		kgo.DisableAutoCommit(),
		// A poll and the callbacks exclude each other, so that no message is
		// taken in of a partition that is gone.
		kgo.BlockRebalanceOnPoll(),
		kgo.OnPartitionsAssigned(s.assigned),
		kgo.OnPartitionsRevoked(s.revoked),
		kgo.OnPartitionsLost(s.lost),
	)
}

// run hands out messages until ctx ends, which is nil, or the session cannot go
// on.
func (s *session) run(ctx context.Context) (end error) {
	polling, stopPolling := context.WithCancel(s.hard)
	defer stopPolling()
	s.workers.Go(func() { s.poll(polling) })
	if s.group != "" {
		s.workers.Go(func() { s.keepCommitting(s.hard) })
	}
	for ctx.Err() == nil && end == nil {
		end = s.step(ctx)
	}
	s.stopHandingOut()
	stopPolling()
	if end == nil {
		s.drain()
	} else {
		// What is finished must not be committed, to another topic or over the
		// heads of those who have the partitions now.
		s.drop(s.all())
	}
	s.mu.Lock()
	s.drained = true
	s.mu.Unlock()
	s.leave() // with a last call of revoked, which may still commit
	s.drop(s.all())
	s.giveUp()
	s.workers.Wait()
	return end
}

// step waits for the next thing to happen.
func (s *session) step(ctx context.Context) error {
	var out chan<- *message.Message
	var next *message.Message
	e := s.offer(ctx)
	if e != nil {
		out, next = s.out, e.msg
	}
	select {
	case out <- next:
		s.handedOut(e)
	case <-s.wake:
	case probe := <-s.holds:
		s.pause(probe)
	case <-s.resumed:
		s.holding = false
	case err := <-s.failed:
		return err
	case <-ctx.Done():
	}
	return nil
}

// poll takes in what the brokers send.
func (s *session) poll(ctx context.Context) {
	for ctx.Err() == nil {
		fetches := s.client.PollFetches(ctx)
		fetches.EachTopic(func(t kgo.FetchTopic) {
			for _, p := range t.Partitions {
				if p.Err != nil {
					s.fetchFailed(p)
				}
				s.accept(t.TopicID, p)
			}
		})
		s.client.AllowRebalance()
	}
}

// fetchFailed deals with an error that comes in the place of records. The client
// tries again by itself.
func (s *session) fetchFailed(p kgo.FetchPartition) {
	switch {
	case errors.Is(p.Err, context.Canceled), errors.Is(p.Err, kgo.ErrClientClosed):
	case errors.Is(p.Err, kerr.UnknownTopicID):
		// The name leads to another topic now, and this client does not go there.
		s.fail(errRecreated)
	default:
		s.watch.failed(explained(p.Err))
	}
}

func (s *session) fail(err error) {
	select {
	case s.failed <- err:
	default:
	}
}

// drain waits for the messages that are being handled, and commits what is
// finished.
func (s *session) drain() {
	if left := s.awaitQuiet(s.all(), s.drainTimeout); left > 0 {
		s.log.Warn("oncemill: kafka: messages were not acknowledged within DrainTimeout, they will be delivered again",
			"topic", s.topic, "messages", left, "drain_timeout", s.drainTimeout)
	}
	if s.group != "" {
		s.commitNow()
	}
}

// leave gives up membership, so that others need not wait for the session
// timeout.
func (s *session) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	defer s.abort()
	if s.client.LeaveGroupContext(ctx) != nil {
		// Such as when it waits to be let into the group, which can take as long
		// as the rebalance timeout of the slowest member.
		s.abort()
	}
	s.client.CloseAllowingRebalance()
}

// assigned is called by the client before it fetches from new partitions.
func (s *session) assigned(_ context.Context, client *kgo.Client, added map[string][]int32) {
	member, _ := client.GroupMetadata()
	if ids := added[s.topic]; len(ids) > 0 {
		s.log.Info("oncemill: kafka: got partitions", "topic", s.topic, "group", s.group, "partitions", ids)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range added[s.topic] {
		if s.partitions[id] == nil {
			s.add(id, member)
		}
	}
}

// revoked is called by the client before it gives partitions to others, who do
// not get them until it has returned. What is finished is committed; what is being
// handled may come to its end, within limits.
func (s *session) revoked(_ context.Context, _ *kgo.Client, gone map[string][]int32) {
	ps := s.retire(gone[s.topic])
	if len(ps) == 0 {
		return
	}
	s.log.Info("oncemill: kafka: giving partitions to others", "topic", s.topic, "group", s.group, "partitions", gone[s.topic])
	s.mu.Lock()
	drained := s.drained
	s.mu.Unlock()
	if !drained {
		s.awaitQuiet(ps, min(s.drainTimeout, handoverTimeout))
	}
	s.commitNow()
	s.drop(ps)
}

// lost is called by the client when others may have the partitions already.
// Nothing of them is committed any more.
func (s *session) lost(_ context.Context, _ *kgo.Client, gone map[string][]int32) {
	ps := s.retire(gone[s.topic])
	if len(ps) > 0 {
		s.log.Warn("oncemill: kafka: partitions are lost: "+goneOn+", or its coordinator cannot be reached; what is not committed is delivered again",
			"topic", s.topic, "group", s.group, "partitions", gone[s.topic])
	}
	s.drop(ps)
}
