package groupcommit_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/testcontainers/internal/lot"
)

// tell says what happens to a message.
func (w *worker) tell(key, what string, args ...any) {
	what = strings.ReplaceAll(fmt.Sprintf(what, args...), "\n", "; ")
	w.Say("%s %s %s %s", key, time.Now().Format("04:05.000000"), w.Name, what)
}

// A source is a message.Subscriber that delivers what its worker has to deliver, a
// number of messages at a time, and again what is not acknowledged.
type source struct {
	w  *worker
	wg sync.WaitGroup

	mu    sync.Mutex
	queue []delivery
	open  int // deliveries that are not acknowledged
}

func newSource(w *worker) *source {
	s := &source{w: w, queue: deliveries(w.Seed, w.Messages, w.Worker)}
	switch {
	case w.All:
		s.queue = shuffled(w.Seed, w.Messages, w.Worker)
	case w.Only != nil:
		s.queue = nil
		for _, number := range w.Only {
			s.queue = append(s.queue, delivery{number: number})
		}
	}
	s.open = len(s.queue)
	return s
}

// Subscribe is called once, by the router, which ends the context to close it.
func (s *source) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	out := make(chan *message.Message)
	for range s.w.InFlight {
		s.wg.Go(func() {
			for d, more := s.next(); more; d, more = s.next() {
				if !s.deliver(ctx, out, d.number) {
					return
				}
				s.ended()
			}
		})
	}
	go func() {
		<-ctx.Done() // a router whose messages end would end too
		s.wg.Wait()
		close(out)
	}()
	if s.open == 0 {
		s.w.Say("finished")
	}
	return out, nil
}

// Close does nothing that the end of Subscribe's context does not do.
func (s *source) Close() error { return nil }

func (s *source) next() (d delivery, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return d, false
	}
	d, s.queue = s.queue[0], s.queue[1:]
	return d, true
}

func (s *source) ended() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open--; s.open == 0 {
		s.w.Say("finished")
	}
}

// deliver delivers a message until it is acknowledged. It reports false if the source
// is closed before.
func (s *source) deliver(ctx context.Context, out chan<- *message.Message, number int) bool {
	key := keyOf(s.w.Seed, number)
	for attempt := 1; ; attempt++ {
		msg := message.NewMessage(key, payloadOf(number))
		msg.Metadata.Set("number", strconv.Itoa(number))
		own, cancel := s.context(ctx, number, attempt)
		msg.SetContext(own)
		select {
		case out <- msg:
		case <-ctx.Done():
			cancel()
			return false
		}
		select {
		case <-msg.Acked():
			s.w.tell(key, "acked")
			s.w.Say("acked %s", key)
			cancel()
			return true
		case <-msg.Nacked():
			cancel()
		}
		select {
		case <-time.After(rand.N(10 * time.Millisecond)):
		case <-ctx.Done():
			return false
		}
	}
}

// context returns the context of a delivery, which may end before or while the message
// is handled.
func (s *source) context(ctx context.Context, number, attempt int) (context.Context, context.CancelFunc) {
	draw := lot.Of(s.w.Seed, "context", s.w.Name, number, attempt)
	odds := 300
	if stormy(number) {
		odds = 15
	}
	if s.w.Calm || attempt > lastTrouble || draw.IntN(odds) > 0 {
		return context.WithCancel(ctx)
	}
	key, moment := keyOf(s.w.Seed, number), time.Duration(draw.Int64N(int64(20*time.Millisecond)))
	switch draw.IntN(5) {
	case 0:
		s.w.tell(key, "delivered, cancelled")
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		return ctx, cancel
	case 1, 2:
		s.w.tell(key, "delivered, to be cancelled after %v", moment)
		ctx, cancel := context.WithCancel(ctx)
		timer := time.AfterFunc(moment, cancel)
		return ctx, func() { timer.Stop(); cancel() }
	}
	s.w.tell(key, "delivered, with %v until its deadline", moment)
	return context.WithTimeout(ctx, moment)
}
