package webhook

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/oncemill/oncemill"
)

// retryAfter is when a provider that heeds such a header may come again.
const retryAfter = 5 * time.Second

// acceptPlainly tells people who look at a delivery in the provider's dashboard what
// has become of it.
func acceptPlainly(w http.ResponseWriter, duplicate bool) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	answer := "stored\n"
	if duplicate {
		answer = "already stored\n"
	}
	_, _ = io.WriteString(w, answer) // it is stored, whether or not anybody hears of it
}

// answerRefused answers a request that is not what the provider sends. A redelivery
// cannot help.
func (rec *receiver) answerRefused(ctx context.Context, w http.ResponseWriter, err error) {
	var refused *refusal
	if !errors.As(err, &refused) {
		refused = &refusal{http.StatusBadRequest, "the request is not understood"}
	}
	rec.logger.WarnContext(ctx, "webhook: refused a request", "provider", rec.provider, "status", refused.status, "reason", refused.text)
	http.Error(w, refused.text, refused.status)
}

// answerFailed answers for an event of which nothing is stored, or of which nobody
// knows: a redelivery finds out. What went wrong is for the log alone.
func (rec *receiver) answerFailed(ctx context.Context, w http.ResponseWriter, e event, err error) {
	status, answer := failure(ctx, err)
	rec.logger.ErrorContext(ctx, "webhook: did not store an event", "provider", rec.provider, "key", e.key, "type", e.kind, "status", status, "error", err)
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", strconv.Itoa(int(retryAfter/time.Second)))
	}
	http.Error(w, answer, status)
}

func failure(ctx context.Context, err error) (status int, answer string) {
	switch {
	case errors.Is(err, oncemill.ErrKeyReused):
		return http.StatusConflict, "this event was stored before with another body"
	case errors.Is(err, oncemill.ErrTooOld):
		return http.StatusConflict, "this event is older than what is kept of events, so that nobody can tell whether it was stored before"
	case errors.Is(err, oncemill.ErrInFlight):
		return http.StatusServiceUnavailable, "this event is being stored at this moment; deliver it again"
	case oncemill.IsHandlerError(err) && ctx.Err() == nil: // else it was not the row that failed, but the time
		return http.StatusInternalServerError, "this event could not be stored"
	}
	return http.StatusServiceUnavailable, "this event could not be stored now; deliver it again"
}
