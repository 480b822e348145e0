package stripeserver

import (
	"net/http"
	"time"
)

// idempotent is what is remembered of a key.
type idempotent struct {
	request string // method, path and parameters
	first   time.Time
	answer  *answer // nil while the first request is executed
}

// idempotently executes a request whose parameters are valid, unless one with its key
// was, or is being, executed.
func (s *Server) idempotently(call Call, fault Fault, e *endpoint) (a answer, replayed bool) {
	request := call.Method + " " + call.Path + " " + call.Params.Encode()
	if call.Key != "" {
		if a, known, replayed := s.remember(call.Key, request); known {
			return a, replayed
		}
	}
	if fault == SlowBefore { // the key is in use meanwhile, also when the client has gone
		s.wait(nil)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a = s.execute(call, fault, e)
	if call.Key != "" {
		s.keys[call.Key].answer = &a
	}
	return a, false
}

// remember returns the answer to a request with a known key, and notes a new one.
func (s *Server) remember(key, request string) (a answer, known, replayed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.keys[key]
	now := s.options.Now()
	switch {
	case k == nil || now.Sub(k.first) >= s.options.KeyLifetime:
		s.keys[key] = &idempotent{request: request, first: now}
		return answer{}, false, false
	case k.request != request:
		return failure(http.StatusBadRequest, apiError{Type: "idempotency_error",
			Message: "Keys for idempotent requests can only be used with the same parameters they were first used with."}), true, false
	case k.answer == nil:
		return inUse(), true, false
	}
	return *k.answer, true, true
}

// execute makes the payment, or fails. s.mu is held.
func (s *Server) execute(call Call, fault Fault, e *endpoint) answer {
	switch fault {
	case ErrorBefore:
		return serverError()
	case ErrorAfter, ErrorHalf:
		e.run(s, call, fault)
		return serverError()
	}
	return e.run(s, call, fault)
}
