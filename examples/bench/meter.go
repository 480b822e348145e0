package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/examples/internal/crew"
)

// A report is how far a worker is. All processes have the same clock.
type report struct {
	Done   int   // messages
	Failed int   // deliveries
	Busy   bool  // with something besides
	First  int64 // nanoseconds, when it began with its first message
	Last   int64 // and when it was done with its last
	CPU    int64 // nanoseconds since then
}

func readReport(line string) (r report, err error) {
	return r, json.Unmarshal([]byte(line), &r)
}

// A meter counts what a worker does, and tells the conductor.
type meter struct {
	done, failed, last atomic.Int64
	busy               atomic.Bool

	begin   sync.Once
	begun   atomic.Int64
	used    time.Duration // by then
	profile string        // file
	stop    func()        // ends the profile
}

// reportEvery is how often the conductor is told. It takes nothing that could be measured.
const reportEvery = 20 * time.Millisecond

// startMeter has the conductor told until ctx ends. wait returns once that is over.
func startMeter(ctx context.Context, s setting) (m *meter, wait func()) {
	m = &meter{profile: s.Profile, stop: func() {}}
	var telling sync.WaitGroup
	telling.Go(func() { m.tell(ctx) })
	return m, telling.Wait
}

func (m *meter) tell(ctx context.Context) {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	var told report
	for {
		select {
		case <-ctx.Done():
			m.begin.Do(func() {}) // it has begun, or does not any more
			m.stop()
			return
		case <-tick.C:
		}
		now := report{Done: int(m.done.Load()), Failed: int(m.failed.Load()), Busy: m.busy.Load(), First: m.begun.Load(), Last: m.last.Load()}
		if now != told && now.First > 0 {
			told = now
			now.CPU = int64(processorTime() - m.used)
			text, _ := json.Marshal(now) // of numbers
			crew.Say(string(text))
		}
	}
}

// starts is called before each message, or before many.
func (m *meter) starts() {
	m.begin.Do(func() {
		m.used = processorTime()
		if m.profile != "" {
			m.startProfile()
		}
		m.begun.Store(time.Now().UnixNano())
	})
}

// ends is called when messages are done.
func (m *meter) ends(messages int) {
	m.last.Store(time.Now().UnixNano())
	m.done.Add(int64(messages))
}

// middleware counts messages that a handler is done with, and goes before all others.
func (m *meter) middleware(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		m.starts()
		produced, err := h(msg)
		if err != nil {
			m.failed.Add(1)
		} else {
			m.ends(1)
		}
		return produced, err
	}
}

func (m *meter) startProfile() {
	file, err := os.Create(m.profile)
	if err != nil {
		slog.Error("no profile", "error", err)
		return
	}
	if err := pprof.StartCPUProfile(file); err != nil {
		slog.Error("no profile", "error", err)
		return
	}
	m.stop = func() {
		pprof.StopCPUProfile()
		file.Close()
	}
}

// processorTime is how much of the processors this process has used.
func processorTime() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
