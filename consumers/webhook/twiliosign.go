package webhook

import (
	"crypto/hmac"
	"crypto/sha1" // Twilio's choice
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// A place is one way to write the URL that Twilio sends to: the query of a request goes
// in between.
type place struct{ address, fragment string }

// spellings returns the ways in which Twilio may have written a URL that it has signed:
// without and with its port, and with and without its fragment.
func spellings(address string) ([]place, error) {
	if address == "" {
		return nil, errors.New("is empty: set it to the URL that Twilio was told to send to, such as https://example.com/hooks/twilio")
	}
	u, err := url.Parse(address)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return nil, errors.New("cannot be Twilio's: must be as https://example.com/hooks/twilio") // it may have a password in it
	case strings.Contains(address, "?"):
		return nil, errors.New("has a query: leave it out, it is taken from each request")
	}
	address, fragment, found := strings.Cut(address, "#")
	scheme, rest, _ := strings.Cut(address, "://")
	authority, path, slash := strings.Cut(rest, "/")
	if slash {
		path = "/" + path
	}
	bare, port := strings.TrimSuffix(authority, ":"+u.Port()), u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[scheme]
	}
	var places []place
	for _, host := range []string{bare, bare + ":" + port} {
		places = append(places, place{scheme + "://" + host + path, ""})
		if found {
			places = append(places, place{scheme + "://" + host + path, "#" + fragment})
		}
	}
	return places, nil
}

type twilioVerifier struct {
	secrets []string
	places  []place
	key     KeyFunc
}

func (v twilioVerifier) verify(r *http.Request, body []byte) (event, error) {
	form, err := twilioForm(r, body)
	if err != nil {
		return event{}, err
	}
	query := ""
	if r.URL.RawQuery != "" || r.URL.ForceQuery {
		query = "?" + r.URL.RawQuery
	}
	parameters := signedParameters(form)
	if err := v.checkSignature(r.Header.Get(twilioSignature), query, parameters); err != nil {
		return event{}, err
	}
	d := &Delivery{Provider: "twilio", Header: r.Header, Form: form, Body: body}
	d.Signed = sha256.Sum256([]byte(v.places[0].address + query + parameters))
	e := event{kind: twilioType(form), metadata: make(map[string]string)}
	if r.URL.RawQuery != "" {
		e.metadata[QueryMetadata] = r.URL.RawQuery
	}
	e.key, err = keyOf(v.key, d)
	return e, err
}

// twilioForm returns the parameters of a form, nil for any other body. That a body is
// what Twilio has sent is shown by the signature for a form, and for another body by
// its hash in the URL.
func twilioForm(r *http.Request, body []byte) (url.Values, error) {
	if strings.ContainsFunc(r.URL.RawQuery, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return nil, refuse(http.StatusBadRequest, "the URL's query is malformed")
	}
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	hashes := r.URL.Query()["bodySHA256"]
	isForm := kind == "application/x-www-form-urlencoded"
	switch {
	case len(hashes) > 1:
		return nil, refuse(http.StatusBadRequest, "bodySHA256 is in the URL more than once")
	case len(hashes) == 0 && !isForm:
		return nil, refuse(http.StatusBadRequest, "the body is not a form, and the URL has no bodySHA256, so that nothing shows who wrote it")
	case len(hashes) == 1 && !isHashOf(hashes[0], body):
		return nil, refuse(http.StatusForbidden, "bodySHA256 is not that of this body")
	case !isForm:
		return nil, nil
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "the body is not a form")
	}
	return form, nil
}

func isHashOf(digits string, body []byte) bool {
	sum := sha256.Sum256(body)
	given, err := hex.DecodeString(digits)
	return err == nil && hmac.Equal(sum[:], given)
}

// signedParameters writes parameters as Twilio signs them: sorted by name, and where a
// name has several values, each of them once and sorted.
func signedParameters(form url.Values) string {
	names := make([]string, 0, len(form))
	for name := range form {
		names = append(names, name)
	}
	slices.Sort(names)
	var b strings.Builder
	for _, name := range names {
		for _, value := range slices.Compact(slices.Sorted(slices.Values(form[name]))) {
			b.WriteString(name)
			b.WriteString(value)
		}
	}
	return b.String()
}

func (v twilioVerifier) checkSignature(header, query, parameters string) error {
	given, err := base64.StdEncoding.Strict().DecodeString(header)
	if err != nil || len(given) != sha1.Size {
		return refuse(http.StatusBadRequest, "header %s is not the base64 of %d bytes", twilioSignature, sha1.Size)
	}
	for _, secret := range v.secrets {
		for _, p := range v.places {
			mac := hmac.New(sha1.New, []byte(secret))
			mac.Write([]byte(p.address + query + p.fragment + parameters))
			if hmac.Equal(mac.Sum(nil), given) {
				return nil
			}
		}
	}
	return refuse(http.StatusForbidden, "the signature is not that of this URL and these parameters")
}

// A twilioEvent is a kind of event, by the parameters that only it has.
type twilioEvent struct {
	kind     string
	id       []string // one of them
	status   []string // one of them
	sequence string   // "": its status comes once
}

// Those with several ids come first: a recording has the id of its call, too.
var twilioEvents = []twilioEvent{
	{"message", []string{"MessageSid", "SmsSid"}, []string{"MessageStatus", "SmsStatus"}, ""},
	{"recording", []string{"RecordingSid"}, []string{"RecordingStatus"}, ""},
	{"conference", []string{"ConferenceSid"}, []string{"StatusCallbackEvent"}, "SequenceNumber"},
	{"call", []string{"CallSid"}, []string{"CallStatus"}, "SequenceNumber"},
}

// twilioEventOf returns the kind of an event, nil if it is none of those.
func twilioEventOf(form url.Values) *twilioEvent {
	for i := range twilioEvents {
		if first(form, twilioEvents[i].id) != "" {
			return &twilioEvents[i]
		}
	}
	return nil
}

func first(form url.Values, names []string) string {
	for _, name := range names {
		if value := form.Get(name); value != "" {
			return value
		}
	}
	return ""
}

// twilioType says what an event is about, as "message.delivered".
func twilioType(form url.Values) string {
	known := twilioEventOf(form)
	switch {
	case form == nil:
		return "json"
	case known == nil:
		return "form"
	}
	return text(strings.TrimSuffix(known.kind+"."+first(form, known.status), "."))
}

// twilioKey is the default of Twilio.Key. A call has several callbacks for one status,
// so that only with a number the status tells them apart.
func twilioKey(d *Delivery) (string, error) {
	if token := d.Header.Get(twilioToken); token != "" {
		return token, nil
	}
	known := twilioEventOf(d.Form)
	if known == nil {
		return BySigned(d)
	}
	id, status := first(d.Form, known.id), first(d.Form, known.status)
	switch number := d.Form.Get(known.sequence); {
	case status == "" || known.sequence != "" && number == "":
		return BySigned(d)
	case known.sequence != "":
		return fmt.Sprintf("%s:%s:%s", id, status, number), nil
	}
	return id + ":" + status, nil
}
