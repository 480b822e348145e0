package guard

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// A node is a JSON value with all that encoding/json would pass over: members that
// are there twice, names in another case, half a surrogate pair, the digits of a number.
type node struct {
	kind    byte     // one of { [ " 0 t f n
	line    int      // where it begins, from 1
	members []member // of {, as they stand
	items   []node   // of [
	text    []rune   // of ": code points, and halves of surrogate pairs that stand alone
	number  string   // of 0, as it stands
}

type member struct {
	name  []rune
	value node
}

// mostDepth is how deep objects and arrays may be nested. Python gives up at about 1,000.
const mostDepth = 500

// parseJSON reads one JSON value with nothing behind it. A member that is there twice is
// an error, as which of both counts depends on who reads it.
func parseJSON(raw []byte) (node, error) {
	if !utf8.Valid(raw) {
		return node{}, errors.New("not UTF-8")
	}
	if err := syntax(raw); err != nil {
		return node{}, err
	}
	r := &jsonReader{rest: string(raw), line: 1}
	n := r.value(0)
	return n, r.err
}

// syntax tells where JSON is malformed.
func syntax(raw []byte) error {
	var value json.RawMessage
	err := json.Unmarshal(raw, &value)
	var where *json.SyntaxError
	if errors.As(err, &where) {
		before := string(raw[:min(int(where.Offset), len(raw))])
		return fmt.Errorf("not JSON: line %d: %w", 1+strings.Count(before, "\n"), where)
	}
	return err
}

// A jsonReader takes JSON apart that is known to be well-formed. err is the first of
// what else is wrong.
type jsonReader struct {
	rest string
	line int
	err  error
}

func (r *jsonReader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("line %d: "+format, append([]any{r.line}, args...)...)
	}
}

// next returns the first byte behind white space and commas and colons.
func (r *jsonReader) next() byte {
	for strings.IndexByte(" \t\r\n,:", r.rest[0]) >= 0 {
		if r.rest[0] == '\n' {
			r.line++
		}
		r.rest = r.rest[1:]
	}
	return r.rest[0]
}

func (r *jsonReader) take(n int) (taken string) {
	taken, r.rest = r.rest[:n], r.rest[n:]
	return taken
}

func (r *jsonReader) value(depth int) node {
	n := node{kind: r.next(), line: r.line}
	if depth > mostDepth {
		r.fail("nested deeper than %d", mostDepth)
		return n
	}
	switch n.kind {
	case '{':
		r.object(&n, depth)
	case '[':
		for r.take(1); r.err == nil && r.next() != ']'; {
			n.items = append(n.items, r.value(depth+1))
		}
		r.close()
	case '"':
		n.text = r.string()
	case 't', 'n':
		r.take(len("true"))
	case 'f':
		r.take(len("false"))
	default:
		n.kind = '0'
		n.number = r.take(len(r.rest) - len(strings.TrimLeft(r.rest, "+-.0123456789eE")))
	}
	return n
}

func (r *jsonReader) object(n *node, depth int) {
	for r.take(1); r.err == nil && r.next() != '}'; {
		name := r.string()
		n.members = append(n.members, member{name, r.value(depth + 1)})
	}
	r.close()
	names := make([][]rune, len(n.members))
	for i, m := range n.members {
		names[i] = m.name
	}
	slices.SortFunc(names, slices.Compare)
	for i := 1; i < len(names); i++ {
		if slices.Equal(names[i-1], names[i]) {
			r.fail("the member %s is there twice", shownName(string(names[i])))
			return
		}
	}
}

func (r *jsonReader) close() {
	if r.err == nil {
		r.take(1)
	}
}

// string reads a string. An escaped surrogate pair is one code point.
func (r *jsonReader) string() (text []rune) {
	for r.take(1); r.rest[0] != '"'; {
		c, size := utf8.DecodeRuneInString(r.rest)
		if r.take(size); c != '\\' {
			text = append(text, c)
			continue
		}
		c = r.escaped()
		if n := len(text); n > 0 && utf16.DecodeRune(text[n-1], c) != utf8.RuneError {
			text[n-1] = utf16.DecodeRune(text[n-1], c)
			continue
		}
		text = append(text, c)
	}
	r.take(1)
	return text
}

// escaped reads what follows a backslash.
func (r *jsonReader) escaped() rune {
	letter := r.take(1)
	if letter != "u" {
		if i := strings.Index(`bfnrt`, letter); i >= 0 {
			return rune("\b\f\n\r\t"[i])
		}
		return rune(letter[0])
	}
	unit, _ := strconv.ParseUint(r.take(4), 16, 16)
	return rune(unit)
}

// canonicalJSON returns a JSON value as Python's
// json.dumps(value, sort_keys=True, separators=(",", ":")) writes it after json.loads:
// members by code point, ASCII only, whole numbers in full and others as repr has them.
// What Python would not read back as it was is an error.
func canonicalJSON(raw []byte) ([]byte, error) {
	n, err := parseJSON(raw)
	if err != nil {
		return nil, err
	}
	return n.append(nil)
}

func (n node) append(b []byte) (_ []byte, err error) {
	switch n.kind {
	case '{':
		members := slices.Clone(n.members)
		slices.SortFunc(members, func(x, y member) int { return slices.Compare(x.name, y.name) })
		for i, m := range members {
			b = append(appendText(append(b, "{,"[min(i, 1)]), m.name), ':')
			if b, err = m.value.append(b); err != nil {
				return nil, err
			}
		}
		return closed(b, "{}", len(members)), nil
	case '[':
		for i, item := range n.items {
			if b, err = item.append(append(b, "[,"[min(i, 1)])); err != nil {
				return nil, err
			}
		}
		return closed(b, "[]", len(n.items)), nil
	case '"':
		return appendText(b, n.text), nil
	case '0':
		return appendNumber(b, n.number, n.line)
	}
	return append(b, map[byte]string{'t': "true", 'f': "false", 'n': "null"}[n.kind]...), nil
}

// closed ends an object or an array of n.
func closed(b []byte, brackets string, n int) []byte {
	if n == 0 {
		return append(b, brackets...)
	}
	return append(b, brackets[1])
}

func appendText(b []byte, text []rune) []byte {
	b = append(b, '"')
	for _, c := range text {
		short := strings.IndexRune("\"\\\b\f\n\r\t", c)
		switch {
		case short >= 0:
			b = append(b, '\\', `"\bfnrt`[short])
		case c >= ' ' && c <= '~':
			b = append(b, byte(c))
		case c > 0xffff:
			high, low := utf16.EncodeRune(c)
			b = fmt.Appendf(b, `\u%04x\u%04x`, high, low)
		default:
			b = fmt.Appendf(b, `\u%04x`, c)
		}
	}
	return append(b, '"')
}

// mostDigits is how many digits Python reads of a whole number.
const mostDigits = 4300

func appendNumber(b []byte, number string, line int) ([]byte, error) {
	if !strings.ContainsAny(number, ".eE") {
		if len(strings.TrimPrefix(number, "-")) > mostDigits {
			return nil, fmt.Errorf("line %d: a whole number has more than %d digits", line, mostDigits)
		}
		if number == "-0" {
			number = "0"
		}
		return append(b, number...), nil
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return nil, fmt.Errorf("line %d: a number is not finite as a float64", line)
	}
	return append(b, pythonFloat(f)...), nil
}

// pythonFloat is Python's repr of a finite float: the shortest digits that give it back,
// with an exponent below 1e-4 and from 1e16 on.
func pythonFloat(f float64) string {
	text := strconv.FormatFloat(f, 'e', -1, 64)
	exponent, _ := strconv.Atoi(text[strings.IndexByte(text, 'e')+1:])
	if exponent < -4 || exponent >= 16 {
		return text
	}
	text = strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(text, ".") {
		text += ".0"
	}
	return text
}
