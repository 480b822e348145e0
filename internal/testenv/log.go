package testenv

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
)

// A Log collects what is logged, by several goroutines or by a process. The zero value is
// empty.
type Log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Logger returns a logger that writes lines of text to it.
func (l *Log) Logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// Count returns how often words have been logged.
func (l *Log) Count(words string) int { return strings.Count(l.String(), words) }
