package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/outbox"
)

const (
	publishers   = 64
	guardedEvery = 10 // so many messages for Once to one for Guard
	singleEvery  = 5  // so many messages for Once to one that is not for batches
	lot          = 100
	lotAgain     = 60 // of a lot are sent twice, in any order
	lotLate      = 3  // of an earlier lot are sent again
	lotOld       = 3  // of those from before the run
	lotsBack     = 128
)

// A producer sends messages, and knows nothing of Oncemill. It writes down what the broker
// has acknowledged. What was not it sends again until it is.
type producer struct {
	setting
	trace     *trace
	sent      *os.File
	publisher message.Publisher
	draws     *rand.Rand
	jobs      chan job
}

// A job is a message to be sent.
type job struct {
	topic, uuid string
	again       bool // or the first time
	origin      time.Time
}

func sentFile(dir string) string { return filepath.Join(dir, "producer.sent") }

// readSent returns the UUIDs of what was sent, by topic.
func readSent(dir string) (map[string][]string, error) {
	lines, err := readLines(sentFile(dir), func(line []byte) (string, error) { return string(line), nil })
	all := make(map[string][]string)
	for _, line := range lines {
		topic, uuid, _ := strings.Cut(line, " ")
		all[topic] = append(all[topic], uuid)
	}
	return all, err
}

func produce(ctx context.Context, s setting) (err error) {
	p := &producer{setting: s, draws: s.draws(), jobs: make(chan job)}
	if p.trace, err = openTrace(s); err != nil {
		return err
	}
	defer p.trace.close()
	if p.sent, err = os.OpenFile(sentFile(s.Dir), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return err
	}
	defer p.sent.Close()
	b, err := s.connect()
	if err != nil {
		return err
	}
	defer b.close()
	p.publisher = b.publisher()
	crew.Say(running)
	var pending sync.WaitGroup
	for range publishers {
		pending.Go(func() {
			for j := range p.jobs {
				p.publish(j)
			}
		})
	}
	p.send(ctx)
	close(p.jobs)
	pending.Wait() // what was begun is finished
	return nil
}

// send sends lots of messages until ctx ends: Rate messages a second, and what was missed
// while the broker was away.
func (p *producer) send(ctx context.Context) {
	var lots [][]job
	begun := time.Now()
	for n := 0; ctx.Err() == nil; n++ {
		now := p.newLot(n)
		lots = append(lots, now)
		jobs := append(now[:len(now):len(now)], p.repeated(lots)...)
		// As of two instances that both send what they have, and neither waits.
		p.draws.Shuffle(len(jobs), func(i, j int) { jobs[i], jobs[j] = jobs[j], jobs[i] })
		select { // a lot comes all at once
		case <-ctx.Done():
			return
		case <-time.After(time.Until(begun.Add(time.Duration(n) * lot * time.Second / time.Duration(p.Rate)))):
		}
		for _, j := range jobs {
			p.jobs <- j
		}
		lots = lots[max(0, len(lots)-lotsBack):]
	}
}

// newLot returns messages that nobody has seen yet.
func (p *producer) newLot(n int) (all []job) {
	for i := range lot {
		topic := batch
		if i%singleEvery == 0 {
			topic = single
		}
		all = append(all, job{topic: topic, uuid: fmt.Sprintf("%s-%d", topic, n*lot+i)})
		if i%guardedEvery == 0 {
			topic = []string{charges, mails}[i/guardedEvery%2]
			all = append(all, job{topic: topic, uuid: fmt.Sprintf("%s-%d", topic, n*lot+i)})
		}
	}
	return all
}

// repeated returns messages that are sent again: some of the newest lot, as by another
// instance of whoever sends them; some of an earlier one; and some from long before the run,
// as an operator does who has messages played again.
func (p *producer) repeated(lots [][]job) (all []job) {
	newest := lots[len(lots)-1]
	for _, i := range p.draws.Perm(len(newest))[:lotAgain] {
		all = append(all, newest[i])
	}
	earlier := lots[p.draws.IntN(len(lots))]
	for range lotLate {
		all = append(all, earlier[p.draws.IntN(len(earlier))])
	}
	for i := range all {
		all[i].again = true
	}
	if p.Late {
		late := job{topic: batch, uuid: fmt.Sprintf("late-%d", len(lots)+p.draws.IntN(1<<40)), origin: time.Now().Add(-oldAge)}
		all = append(all, late)
	}
	for range lotOld {
		all = append(all, job{topic: batch, uuid: oldUUID(p.draws.IntN(p.History)), again: true, origin: time.Now().Add(-oldAge)})
	}
	return all
}

// publish sends a message until the broker has it.
func (p *producer) publish(j job) {
	for try := 1; ; try++ {
		msg := message.NewMessage(j.uuid, []byte("for "+j.uuid))
		if !j.origin.IsZero() {
			msg.Metadata.Set(outbox.OriginMetadata, j.origin.UTC().Format(time.RFC3339Nano))
		}
		err := p.publisher.Publish(j.topic, msg)
		if err == nil {
			p.trace.note(j.uuid, "published to %s, try %d, again: %t", j.topic, try, j.again)
			if !j.again {
				fmt.Fprintln(p.sent, j.topic, j.uuid)
			}
			return
		}
		p.trace.note(j.uuid, "not published to %s, try %d: %.200v", j.topic, try, err)
		time.Sleep(20 * time.Millisecond)
	}
}
