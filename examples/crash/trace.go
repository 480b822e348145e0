package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

// A trace is where a process writes what it does with each message: lines of a time, a
// key, who, and what. It is not believed, but shown with what the checker finds.
type trace struct {
	file io.WriteCloser
	who  string
}

const traceTime = "15:04:05.000000"

func openTrace(s setting) (*trace, error) {
	file, err := os.OpenFile(traceFile(s.Dir, fmt.Sprint(s.Role, "-", s.Place)), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	return &trace{file, fmt.Sprintf("%s %d.%d", s.Role, s.Place, s.Life)}, err
}

func traceFile(dir, name string) string { return filepath.Join(dir, name+".trace") }

// note writes a line, at once: the process may be killed at any moment.
func (t *trace) note(key, format string, args ...any) {
	line := time.Now().UTC().Format(traceTime) + " " + key + " " + t.who + ": " + fmt.Sprintf(format, args...) + "\n"
	_, _ = io.WriteString(t.file, line) // a trace is not believed, nor missed
}

func (t *trace) close() { t.file.Close() }

// draws are what a process draws by.
func (s setting) draws() *rand.Rand {
	return rand.New(rand.NewPCG(s.Seed, uint64(s.Place)<<32|uint64(s.Life)<<16|uint64(len(s.Role))))
}
