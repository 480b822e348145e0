package stripeserver

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// An Entry is money that moved: a payment that was made, or a refund.
type Entry struct {
	At       time.Time         `json:"at"`
	Kind     string            `json:"kind"` // "charge" or "refund"
	ID       string            `json:"id"`   // "pi_..." or "re_..."
	Key      string            `json:"key"`  // the Idempotency-Key it was executed under
	Amount   int64             `json:"amount"`
	Currency string            `json:"currency"`
	Customer string            `json:"customer,omitempty"`
	Payment  string            `json:"payment,omitempty"` // what a refund refunds
	Metadata map[string]string `json:"metadata,omitempty"`
}

// ledger is written before the answer is: what a client heard of is in it.
type ledger struct {
	entries []Entry
	file    *os.File
}

func openLedger(path string) (*ledger, error) {
	if path == "" {
		return &ledger{}, nil
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &ledger{file: file}, nil
}

func (l *ledger) add(e Entry) error {
	l.entries = append(l.entries, e)
	if l.file == nil {
		return nil
	}
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = l.file.Write(append(line, '\n'))
	return err
}

func (l *ledger) close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

// Ledger returns what was executed, in its order.
func (s *Server) Ledger() []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.ledger.entries)
}

// ReadLedger reads the file that Options.Ledger names, also while the server writes
// it. A line that is not complete yet is left out.
func ReadLedger(path string) ([]Entry, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var entries []Entry
	for r := bufio.NewReader(file); ; {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return nil, err
		}
		var e Entry
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, len(entries)+1, err)
		}
		entries = append(entries, e)
	}
}
