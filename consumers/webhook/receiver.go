package webhook

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/outbox"
)

// A receiver is what the providers have in common: it reads a request, has it verified,
// and stores its event once.
type receiver struct {
	provider string
	consumer *oncemill.Consumer
	topic    string
	mostBody int64
	timeout  time.Duration
	outbox   *outbox.Publisher
	logger   *slog.Logger

	needed []string // headers that must be there
	single []string // headers that may be there, once
	verify func(r *http.Request, body []byte) (event, error)
	accept func(w http.ResponseWriter, duplicate bool)
}

// A refusal is a request that nothing is stored of, and why. Its text goes to whoever
// sent it.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

func refuse(status int, format string, args ...any) error {
	return &refusal{status, fmt.Sprintf(format, args...)}
}

// An endpoint is a receiver, or why there is none.
type endpoint struct {
	once   sync.Once
	rec    *receiver
	wrong  error
	logger *slog.Logger
}

// setUp makes the receiver, once. finish adds what is the provider's.
func (e *endpoint) setUp(s settings, finish func(r *receiver) error) *endpoint {
	e.once.Do(func() {
		e.logger = s.logger
		if e.logger == nil {
			e.logger = slog.Default()
		}
		if e.rec, e.wrong = s.receiver(e.logger); e.wrong == nil {
			e.wrong = finish(e.rec)
		}
	})
	return e
}

// check reports what is wrong with the fields, or with the database.
func (e *endpoint) check(ctx context.Context) error {
	if e.wrong != nil {
		return e.wrong
	}
	if err := e.rec.consumer.Inbox().Check(ctx); err != nil {
		return fmt.Errorf("webhook: %w", err)
	}
	return nil
}

func (e *endpoint) serve(w http.ResponseWriter, r *http.Request) {
	if e.wrong != nil {
		e.logger.ErrorContext(r.Context(), "webhook: refused a request, as all others: call Check at start", "error", e.wrong)
		http.Error(w, "the receiver is set up wrongly", http.StatusInternalServerError)
		return
	}
	e.rec.serve(w, r)
}

func (rec *receiver) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "send events with POST", http.StatusMethodNotAllowed)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), rec.timeout)
	defer cancel()
	e, body, err := rec.admit(w, r)
	if err != nil {
		rec.answerRefused(ctx, w, err)
		return
	}
	duplicate, err := rec.store(ctx, e, body, r.Header.Get("Content-Type"))
	if err != nil {
		rec.answerFailed(ctx, w, e, err)
		return
	}
	rec.accept(w, duplicate)
}

// admit reads a request and verifies it. Headers come first: they cost nothing.
func (rec *receiver) admit(w http.ResponseWriter, r *http.Request) (e event, body []byte, err error) {
	if err := rec.checkHeaders(r.Header); err != nil {
		return e, nil, err
	}
	if body, err = rec.read(w, r); err != nil {
		return e, nil, err
	}
	e, err = rec.verify(r, body)
	return e, body, err
}

// checkHeaders wants one of each header that something depends on. Of two, a proxy in
// front may have looked at the other.
func (rec *receiver) checkHeaders(h http.Header) error {
	for _, name := range rec.needed {
		switch values := h.Values(name); {
		case len(values) > 1:
			return refuse(http.StatusBadRequest, "header %s is there more than once", name)
		case len(values) == 0 || values[0] == "":
			return refuse(http.StatusBadRequest, "header %s is missing", name)
		}
	}
	for _, name := range rec.single {
		if len(h.Values(name)) > 1 {
			return refuse(http.StatusBadRequest, "header %s is there more than once", name)
		}
	}
	return nil
}

// read reads a body. How long that may take is the server's business.
func (rec *receiver) read(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	tooLarge := refuse(http.StatusRequestEntityTooLarge, "the body has more than %d bytes", rec.mostBody)
	if r.ContentLength > rec.mostBody {
		return nil, tooLarge
	}
	if r.Body == nil {
		return nil, refuse(http.StatusBadRequest, "there is no body")
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, rec.mostBody))
	var exceeded *http.MaxBytesError
	switch {
	case errors.As(err, &exceeded):
		return nil, tooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, refuse(http.StatusRequestTimeout, "the body came too slowly")
	case err != nil:
		return nil, refuse(http.StatusBadRequest, "the body cannot be read")
	case len(body) == 0:
		return nil, refuse(http.StatusBadRequest, "there is no body")
	}
	return body, nil
}

// store publishes an event, unless that was done before. nil means that it is
// committed.
func (rec *receiver) store(ctx context.Context, e event, body []byte, contentType string) (duplicate bool, err error) {
	duplicate = true
	options := oncemill.ClaimOptions{Fingerprint: e.fingerprint, Origin: e.origin}
	err = rec.consumer.OnceWith(ctx, e.key, options, func(ctx context.Context, tx oncemill.Tx) error {
		duplicate = false
		return rec.outbox.InTx(bound(ctx, tx)).Publish(rec.topic, rec.message(e, body, contentType))
	})
	if err == nil && !duplicate {
		rec.outbox.Wake()
	}
	return duplicate, err
}

// message is what a worker gets.
func (rec *receiver) message(e event, body []byte, contentType string) *message.Message {
	msg := message.NewMessage(e.key, body)
	for name, value := range e.metadata {
		msg.Metadata.Set(name, value)
	}
	msg.Metadata.Set(ProviderMetadata, rec.provider)
	msg.Metadata.Set(TypeMetadata, e.kind)
	msg.Metadata.Set(KeyMetadata, e.key)
	msg.Metadata.Set(ContentTypeMetadata, text(contentType))
	return msg
}

// An executor is a transaction with a context of its own.
type executor func(query string, args ...any) (sql.Result, error)

func (e executor) ExecContext(_ context.Context, query string, args ...any) (sql.Result, error) {
	return e(query, args...)
}

// bound has ctx end the statement of an outbox.Publisher, which lets no context do that,
// since the connection breaks then. Nothing else is in this transaction, and a provider
// does not wait for ever.
func bound(ctx context.Context, tx oncemill.Tx) outbox.Executor {
	return executor(func(query string, args ...any) (sql.Result, error) { return tx.ExecContext(ctx, query, args...) })
}
