package guard

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/oncemill/oncemill"
)

// Limits of what a request can say, in bytes.
const (
	mostBody        = 256 << 10
	mostID          = 512
	mostFingerprint = 256
	mostReason      = 2048
)

const tooLargeResult = "result is larger than 65536 bytes: settle with a reference to it"

// ids are what the path of a request can mean: many clients do not escape ids, so that
// order%2F7 may stand for order/7 or for itself.
type ids []string

// idsOf returns the readings of the end of a path and what is behind it in the URL, the
// likeliest first.
func idsOf(raw string, in *url.URL) (readings ids) {
	add := func(id string) {
		for _, one := range readings {
			if one == id {
				return
			}
		}
		readings = append(readings, id)
	}
	unescape := func(s string) {
		if id, err := url.PathUnescape(s); err == nil {
			add(id)
		}
		add(s)
	}
	unescape(raw)
	if in.RawQuery != "" || in.ForceQuery {
		unescape(raw + "?" + in.RawQuery)
	}
	return readings
}

// wrongID says why an id cannot be one, or is "".
func wrongID(id string) string {
	switch {
	case id == "":
		return "String should have at least 1 character"
	case len(id) > mostID:
		return fmt.Sprintf("String should have at most %d bytes of UTF-8, but has %d: use a hash of it", mostID, len(id))
	case strings.ContainsAny(id, "\x00\uFFFD"):
		return "String should have no NUL and no U+FFFD, which stands for what is not Unicode"
	case strings.HasPrefix(id, "oncemill:"):
		return "oncemill: prefix is reserved"
	}
	return ""
}

// body is the JSON object of a request, and what was found wrong with it.
type body struct {
	members map[string]json.RawMessage
	wrong   []fieldError
}

// readBody reads a JSON object. Members that nobody asks for are ignored.
func (c *call) readBody() (*body, error) {
	b, err := c.readOptionalBody()
	if err == nil && b.members == nil {
		return nil, invalid([]any{"body"}, "missing", "Field required")
	}
	return b, err
}

// readOptionalBody is readBody for a request that may have none.
func (c *call) readOptionalBody() (*body, error) {
	text, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, mostBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, problem{status: http.StatusRequestEntityTooLarge, code: "too_large", detail: fmt.Sprintf("the body is larger than %d bytes", mostBody)}
	case err != nil:
		return nil, problem{status: http.StatusBadRequest, code: "bad_request", detail: "the body could not be read to its end"}
	case len(bytes.TrimSpace(text)) == 0:
		return new(body), nil
	case !utf8.Valid(text):
		return nil, invalid([]any{"body"}, "json_invalid", "JSON decode error: not UTF-8")
	}
	b := new(body)
	if err := json.Unmarshal(text, &b.members); err != nil || b.members == nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return nil, invalid([]any{"body", syntax.Offset}, "json_invalid", "JSON decode error: "+syntax.Error())
		}
		return nil, invalid([]any{"body"}, "model_attributes_type", "Input should be a valid dictionary or object to extract fields from")
	}
	return b, nil
}

// err returns what is wrong.
func (b *body) err() error {
	if len(b.wrong) == 0 {
		return nil
	}
	return invalidFields(b.wrong)
}

func (b *body) fail(field, kind, msg string) {
	b.wrong = append(b.wrong, fieldError{Type: kind, Loc: bodyField(field), Msg: msg})
}

func (b *body) has(field string) bool {
	raw, ok := b.members[field]
	return ok && string(raw) != "null"
}

// text reads a string; missing says that there must be one.
func (b *body) text(field string, missing bool, most int) (s string) {
	raw, ok := b.members[field]
	switch {
	case !ok && missing:
		b.fail(field, "missing", "Field required")
	case !ok, !missing && string(raw) == "null":
	case raw[0] != '"':
		b.fail(field, "string_type", "Input should be a valid string")
	case json.Unmarshal(raw, &s) != nil:
		b.fail(field, "string_type", "Input should be a valid string")
	case len(s) > most:
		b.fail(field, "string_too_long", fmt.Sprintf("String should have at most %d bytes of UTF-8", most))
	case strings.ContainsAny(s, "\x00\uFFFD"):
		b.fail(field, "string_unicode", "String should have no NUL and no U+FFFD, which stands for what is not Unicode")
	}
	return s
}

// flag reads a boolean, false if it is missing.
func (b *body) flag(field string) (on bool) {
	if b.has(field) && json.Unmarshal(b.members[field], &on) != nil {
		b.fail(field, "bool_type", "Input should be a valid boolean")
	}
	return on
}

// seconds reads a time, 0 if it is missing.
func (b *body) seconds(field string, least, most time.Duration) time.Duration {
	if !b.has(field) {
		return 0
	}
	n, err := strconv.ParseFloat(string(b.members[field]), 64)
	switch {
	case err != nil:
		b.fail(field, "float_type", "Input should be a valid number of seconds")
	case n < least.Seconds() || n > most.Seconds():
		b.fail(field, "out_of_range", fmt.Sprintf("Input should be from %v to %v seconds", least.Seconds(), most.Seconds()))
		n = 0
	}
	return time.Duration(n * float64(time.Second))
}

// decimal reads a decimal number, which may be a string; "" if it is missing.
func (b *body) decimal(field string) (s string) {
	if !b.has(field) {
		return ""
	}
	s = string(b.members[field])
	if s[0] == '"' {
		_ = json.Unmarshal(b.members[field], &s)
	} else if f, err := strconv.ParseFloat(s, 64); err == nil && strings.ContainsAny(s, "eE") {
		s = strconv.FormatFloat(f, 'f', -1, 64) // as many languages write what is very large or small
	}
	if (oncemill.ClaimOptions{Amount: s}).Check() != nil || s == "" || s[0] == '-' {
		b.fail(field, "decimal_parsing", "Input should be a decimal number of at least 0 such as 452.00, of at most 30 digits before the point and 20 behind it")
	}
	return s
}

// integer reads a whole number above 0; 0 if it is missing.
func (b *body) integer(field string) int64 {
	if !b.has(field) {
		return 0
	}
	raw := string(b.members[field])
	n, err := strconv.ParseInt(raw, 10, 64)
	if f, errFloat := strconv.ParseFloat(raw, 64); err != nil && errFloat == nil && f == math.Trunc(f) && math.Abs(f) < 1<<53 {
		n, err = int64(f), nil // 42.0 is a whole number, too
	}
	if err != nil || n < 1 {
		b.fail(field, "int_type", "Input should be a valid integer above 0")
	}
	return n
}

// compact reads any JSON value without its white space; nil if it is missing.
func (b *body) compact(field string) []byte {
	raw, ok := b.members[field]
	if !ok {
		return nil
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, raw); err != nil { // it was read before
		b.fail(field, "json_invalid", "JSON decode error: "+err.Error())
	}
	return compact.Bytes()
}

// result reads what a claim is settled with. objects says that it has to be an object.
func (b *body) result(missing, objects bool) []byte {
	raw := b.compact("result")
	switch {
	case raw == nil && missing:
		b.fail("result", "missing", "Field required")
	case raw != nil && objects && raw[0] != '{':
		b.fail("result", "dict_type", "Input should be a valid dictionary")
	case tooDeep(raw):
		b.fail("result", "too_deep", fmt.Sprintf("result is nested deeper than %d", mostDepth))
	case len(raw) > oncemill.MostResult:
		b.fail("result", "too_long", tooLargeResult)
	}
	return raw
}

// tooDeep reports whether JSON is nested deeper than many programs can read it.
func tooDeep(text []byte) bool {
	depth, quoted := 0, false
	for i := 0; i < len(text) && depth <= mostDepth; i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			depth--
		}
	}
	return depth > mostDepth
}

var noncePattern = regexp.MustCompile(`^[A-Za-z0-9_-]{22,128}$`)

// nonce reads what identifies the call; nil if it is missing.
func (b *body) nonce() []byte {
	nonce := b.text("nonce", false, 128)
	switch {
	case nonce == "" && !b.has("nonce"):
		return nil
	case !noncePattern.MatchString(nonce):
		b.fail("nonce", "string_pattern_mismatch", "String should be 22 to 128 random characters of A-Z, a-z, 0-9, - and _")
	}
	return []byte(nonce)
}
