package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/oncemill/oncemill/examples/internal/crew"
)

const (
	pulseEvery  = time.Second
	pulsePrefix = "pulse "

	// countEvery is how often goroutines are counted. Each message in flight has some, so
	// that it is the least of a while that tells of those which stay for ever.
	countEvery = 20 * time.Millisecond
)

// A pulse is what a process says of itself now and then.
type pulse struct {
	Goroutines uint64 // the least of them since the pulse before
	Heap       uint64 // bytes that were alive after the last garbage collection
}

// beat has a role tell its pulse while it goes on.
func beat(role func(context.Context, setting) error) func(context.Context, setting) error {
	return func(ctx context.Context, s setting) error {
		var beating sync.WaitGroup
		defer beating.Wait()
		over := make(chan struct{})
		defer close(over)
		beating.Go(func() { tellPulses(over) })
		return role(ctx, s)
	}
}

func tellPulses(over <-chan struct{}) {
	tick := time.NewTicker(countEvery)
	defer tick.Stop()
	least, told := readPulse(), time.Now()
	for {
		select {
		case <-over:
			return
		case <-tick.C:
		}
		now := readPulse()
		least.Goroutines = min(least.Goroutines, now.Goroutines)
		if time.Since(told) >= pulseEvery {
			text, _ := json.Marshal(pulse{least.Goroutines, now.Heap}) // of numbers
			crew.Say(pulsePrefix + string(text))
			least, told = now, time.Now()
		}
	}
}

func readPulse() pulse {
	samples := []metrics.Sample{{Name: "/sched/goroutines:goroutines"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(samples)
	return pulse{samples[0].Value.Uint64(), samples[1].Value.Uint64()}
}

func parsePulse(line string) (p pulse, ok bool, err error) {
	text, ok := strings.CutPrefix(line, pulsePrefix)
	if ok {
		err = json.Unmarshal([]byte(text), &p)
	}
	return p, ok, err
}

// memoryOf is what the kernel says of a process's memory, in bytes: its VmRSS, or its
// RssAnon, which leaves shared memory out. 0 where there is no /proc, or no such process.
func memoryOf(pid int, field string) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			kilobytes, _ := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB"))) // 0: as without /proc
			return float64(kilobytes) * 1024
		}
	}
	return 0
}
