package stripeserver

import (
	"encoding/json"
	"fmt"
	"net/http"
)

// apiError is the object error of Stripe's answers.
type apiError struct {
	Type          string  `json:"type"`
	Code          string  `json:"code,omitempty"`
	DeclineCode   string  `json:"decline_code,omitempty"`
	Message       string  `json:"message"`
	Param         string  `json:"param,omitempty"`
	PaymentIntent *intent `json:"payment_intent,omitempty"`
}

func failure(status int, e apiError) answer {
	body, err := json.Marshal(map[string]apiError{"error": e})
	if err != nil {
		return answer{http.StatusInternalServerError, []byte(`{"error":{"type":"api_error"}}`)}
	}
	return answer{status, body}
}

// invalid is a request that is refused for what it says.
func invalid(code, param, message string, args ...any) answer {
	return failure(http.StatusBadRequest, apiError{
		Type: "invalid_request_error", Code: code, Param: param, Message: fmt.Sprintf(message, args...),
	})
}

func inUse() answer {
	return failure(http.StatusConflict, apiError{Type: "idempotency_error", Code: "idempotency_key_in_use",
		Message: "There is currently another in-progress request using this Idempotent Key (that probably means you submitted twice, and the other request is still going through)."})
}

func serverError() answer {
	return failure(http.StatusInternalServerError, apiError{Type: "api_error", Message: "An unknown error occurred."})
}
