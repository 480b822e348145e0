package stripeserver

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// endpoint is one method of the API. run has the server's state to itself.
type endpoint struct {
	required []string
	optional []string // a name that ends with [ stands for all that begin so
	run      func(s *Server, call Call, fault Fault) answer
}

var lists = []string{"limit", "starting_after", "created[gt]", "created[gte]", "created[lt]", "created[lte]"}

var endpoints = map[string]*endpoint{
	"POST /v1/payment_intents": {
		required: []string{"amount", "currency"},
		optional: []string{"confirm", "off_session", "payment_method", "customer", "description", "metadata[",
			"automatic_payment_methods[enabled]", "automatic_payment_methods[allow_redirects]"},
		run: (*Server).createIntent,
	},
	"GET /v1/payment_intents":              {optional: append([]string{"customer"}, lists...), run: (*Server).listIntents},
	"POST /v1/payment_intents/{id}/cancel": {optional: []string{"cancellation_reason"}, run: (*Server).cancelIntent},
	"POST /v1/refunds": {
		required: []string{"amount"},
		optional: []string{"payment_intent", "charge", "metadata["},
		run:      (*Server).createRefund,
	},
	"GET /v1/refunds": {optional: append([]string{"payment_intent", "charge"}, lists...), run: (*Server).listRefunds},
}

func endpointOf(method, path string) *endpoint {
	if _, ok := canceledID(path); ok {
		path = "/v1/payment_intents/{id}/cancel"
	}
	return endpoints[method+" "+path]
}

func canceledID(path string) (id string, ok bool) {
	rest, ok := strings.CutPrefix(path, "/v1/payment_intents/")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(rest, "/cancel")
}

// check returns the answer to a request with parameters that Stripe does not know, or
// without some that it wants.
func (e *endpoint) check(p url.Values) *answer {
	problem := func(a answer) *answer { return &a }
	for name, values := range p {
		known := slices.ContainsFunc(slices.Concat(e.required, e.optional), func(k string) bool {
			return name == k || strings.HasSuffix(k, "[") && strings.HasPrefix(name, k) && strings.HasSuffix(name, "]")
		})
		switch {
		case !known:
			return problem(invalid("parameter_unknown", name, "Received unknown parameter: %s", name))
		case len(values) != 1:
			return problem(invalid("", name, "Received parameter %s %d times", name, len(values)))
		case strings.HasPrefix(name, "created[") && !isInteger(values[0]):
			return problem(invalid("", name, "Invalid timestamp: %s", values[0]))
		case values[0] == "" && !strings.HasPrefix(name, "metadata["):
			return problem(invalid("parameter_invalid_empty", name, "You passed an empty string for '%s'.", name))
		}
	}
	for _, name := range e.required {
		if !p.Has(name) {
			return problem(invalid("parameter_missing", name, "Missing required param: %s.", name))
		}
	}
	if limit := p.Get("limit"); p.Has("limit") {
		if n, err := strconv.Atoi(limit); err != nil || n < 1 || n > 100 {
			return problem(invalid("", "limit", "Invalid limit: %s; must be from 1 to 100", limit))
		}
	}
	return checkMetadata(p)
}

func isInteger(text string) bool {
	_, err := strconv.ParseInt(text, 10, 64)
	return err == nil
}

// checkMetadata checks against https://docs.stripe.com/api/metadata.
func checkMetadata(p url.Values) *answer {
	m := metadataOf(p)
	for name, value := range m {
		if len(m) > 50 || len(name) > 40 || len(value) > 500 {
			a := invalid("", "metadata", "Metadata can have up to 50 keys of up to 40 characters with values of up to 500 characters.")
			return &a
		}
	}
	return nil
}

func metadataOf(p url.Values) map[string]string {
	m := map[string]string{}
	for name := range p {
		if rest, ok := strings.CutPrefix(name, "metadata["); ok {
			m[strings.TrimSuffix(rest, "]")] = p.Get(name)
		}
	}
	return m
}

// object is what lists are made of.
type object interface {
	id() string
	createdAt() int64
}

type page struct {
	Object  string `json:"object"`
	URL     string `json:"url"`
	HasMore bool   `json:"has_more"`
	Data    []any  `json:"data"`
}

// list answers with a page of the objects that are visible and wanted, newest first.
// all is by creation.
func list[T object](s *Server, call Call, all []T, want func(T) bool) answer {
	limit := 10
	if call.Params.Has("limit") {
		limit, _ = strconv.Atoi(call.Params.Get("limit"))
	}
	result := page{Object: "list", URL: call.Path, Data: []any{}}
	after := call.Params.Get("starting_after")
	if after != "" && !slices.ContainsFunc(all, func(o T) bool { return o.id() == after }) {
		return missing("starting_after", after)
	}
	visible := s.options.Now().Add(-s.options.VisibleAfter).Unix()
	for _, o := range slices.Backward(all) {
		switch {
		case after != "":
			if o.id() == after {
				after = ""
			}
		case !within(call.Params, o.createdAt()) || s.options.VisibleAfter > 0 && o.createdAt() > visible || !want(o):
		case len(result.Data) == limit:
			result.HasMore = true
			return success(result)
		default:
			result.Data = append(result.Data, o)
		}
	}
	return success(result)
}

func within(p url.Values, created int64) bool {
	for name, ok := range map[string]func(bound int64) bool{
		"created[gt]":  func(b int64) bool { return created > b },
		"created[gte]": func(b int64) bool { return created >= b },
		"created[lt]":  func(b int64) bool { return created < b },
		"created[lte]": func(b int64) bool { return created <= b },
	} {
		if bound, err := strconv.ParseInt(p.Get(name), 10, 64); p.Has(name) && err == nil && !ok(bound) {
			return false
		}
	}
	return true
}

func missing(param, id string) answer {
	a := invalid("resource_missing", param, "No such object: '%s'", id)
	a.status = http.StatusNotFound
	return a
}
