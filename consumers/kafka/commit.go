package kafka

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/oncemill/oncemill/internal/delivery"
)

// commitTimeout bounds one commit. The client repeats it until then while the
// brokers are away.
const commitTimeout = 5 * time.Second

// errNotOwned is why a commit is not sent.
var errNotOwned = errors.New("the partition was given away in the meantime")

// keepCommitting commits what is finished, with at least commitInterval between
// two commits.
func (s *session) keepCommitting(ctx context.Context) {
	for {
		select {
		case <-s.dirty:
		case <-ctx.Done():
			return
		}
		s.commitNow()
		if !delivery.Sleep(ctx, s.commitInterval) {
			return
		}
	}
}

// commitNow commits what is finished. If that fails, the messages are delivered
// again to whoever reads the partition next, unless a later commit succeeds.
func (s *session) commitNow() {
	s.committing.Lock() // or an older one could come after this
	defer s.committing.Unlock()
	offsets, marks := s.committable()
	if len(marks) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	// The brokers look only at who commits, not at whether the partition is still
	// theirs. Between committable and now it may have been given away and this
	// client have joined the group again, whose commit would then set the new
	// owner's back. The client calls this when it has settled in whose name and
	// in which generation of the group it commits, and joins no other one before
	// the commit is over.
	ctx = kgo.PreCommitFnContext(ctx, func(req *kmsg.OffsetCommitRequest) error { return s.mayCommit(marks, req.MemberID) })
	var failure error
	s.client.CommitOffsetsSync(ctx, map[string]map[int32]kgo.EpochOffset{s.topic: offsets},
		func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
			if err != nil {
				failure = err
				return
			}
			failure = s.committed(marks, resp)
		})
	s.watch.committed(failure)
	if failure != nil {
		s.mark() // for another try
	}
}

// A mark is how far a partition was finished.
type mark struct {
	p    *partition
	next int64
}

// committable returns what has been finished since the last commit.
func (s *session) committable() (offsets map[int32]kgo.EpochOffset, marks map[int32]mark) {
	s.mu.Lock()
	defer s.mu.Unlock()
	offsets, marks = make(map[int32]kgo.EpochOffset), make(map[int32]mark)
	for _, p := range s.order {
		if p.next != p.committed {
			offsets[p.id] = kgo.EpochOffset{Epoch: p.epoch, Offset: p.next}
			marks[p.id] = mark{p, p.next}
		}
	}
	return offsets, marks
}

// mayCommit returns nil if all partitions are still ours, and were given to the
// member that commits. A client whose membership was ended without its knowledge,
// as while its machine was suspended, learns of it from the answer to a commit,
// and joins as a new member without a word; its callbacks come after that, and the
// brokers would take what it commits then.
func (s *session) mayCommit(marks map[int32]mark, member string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, m := range marks {
		switch {
		case s.partitions[id] != m.p:
			return errNotOwned
		case m.p.member != member:
			s.fail(errEvicted)
			return errEvicted
		}
	}
	return nil
}

// committed takes note of the brokers' answer.
func (s *session) committed(marks map[int32]mark, resp *kmsg.OffsetCommitResponse) (failure error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range resp.Topics {
		for _, answer := range t.Partitions {
			err := kerr.ErrorForCode(answer.ErrorCode)
			if errors.Is(err, kerr.UnknownMemberID) {
				s.fail(errEvicted)
			}
			if err != nil {
				failure = err
				continue
			}
			if m, ok := marks[answer.Partition]; ok {
				m.p.committed = m.next
			}
		}
	}
	return failure
}

// mark has keepCommitting commit.
func (s *session) mark() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}
