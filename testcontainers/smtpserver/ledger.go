package smtpserver

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/mail"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// ledgerFile is the ledger's file in a server's directory: a mail a line, as JSON.
const ledgerFile = "ledger.jsonl"

// A Mail is one that the server has accepted.
type Mail struct {
	MessageID  string    `json:"message_id"` // with its angle brackets
	From       string    `json:"from"`       // of the envelope, as are the recipients
	Recipients []string  `json:"recipients"`
	Time       time.Time `json:"time"`
	Connection int       `json:"connection"` // the how manyth it was, from 1
	User       string    `json:"user"`       // who had authenticated
	Encrypted  bool      `json:"encrypted"`
	UTF8       bool      `json:"utf8"` // sent with SMTPUTF8
	Data       string    `json:"data"` // header and body
}

// Parse reads the mail's header and body.
func (m Mail) Parse() (*mail.Message, error) {
	return mail.ReadMessage(bytes.NewReader([]byte(m.Data)))
}

// ReadLedger reads the mails that the servers of a directory have accepted, also while
// one runs in another process. A line that is being written is left out.
func ReadLedger(dir string) ([]Mail, error) {
	text, err := os.ReadFile(filepath.Join(dir, ledgerFile))
	if err != nil {
		return nil, fmt.Errorf("the ledger of the SMTP server: %w", err)
	}
	var mails []Mail
	for line := range bytes.Lines(text) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break
		}
		var m Mail
		if err := json.Unmarshal(line, &m); err != nil {
			return nil, fmt.Errorf("line %d in the ledger of the SMTP server: %w", len(mails)+1, err)
		}
		mails = append(mails, m)
	}
	return mails, nil
}

// A book is the ledger of a server that runs.
type book struct {
	mu    sync.Mutex
	mails []Mail
	file  *os.File      // nil: none
	more  chan struct{} // closed with the next mail
}

// openBook opens the ledger in a directory. What was written before stays in the
// file; a line that a killed server has not finished goes, as its mail was never
// accepted.
func openBook(dir string) (*book, error) {
	b := &book{more: make(chan struct{})}
	if dir == "" {
		return b, nil
	}
	path := filepath.Join(dir, ledgerFile)
	text, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	if b.file, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return nil, err
	}
	whole := bytes.LastIndexByte(text, '\n') + 1
	return b, b.file.Truncate(int64(whole))
}

// add records a mail. It is in the file before anybody is told.
func (b *book) add(m Mail) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file != nil {
		line, err := json.Marshal(m)
		if err != nil {
			return err
		}
		if _, err := b.file.Write(append(line, '\n')); err != nil {
			return err
		}
	}
	b.mails = append(b.mails, m)
	close(b.more)
	b.more = make(chan struct{})
	return nil
}

func (b *book) all() []Mail {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.mails)
}

func (b *book) await(ctx context.Context, mails int) error {
	for {
		b.mu.Lock()
		n, more := len(b.mails), b.more
		b.mu.Unlock()
		if n >= mails {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("there are %d mails of %d in the ledger: %w", n, mails, context.Cause(ctx))
		}
	}
}

func (b *book) close() error {
	if b.file == nil {
		return nil
	}
	return b.file.Close()
}
