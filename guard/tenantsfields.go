package guard

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// An object reads the fields of a JSON object. err is the first of what is wrong with them.
type object struct {
	line int
	of   map[string]node
	err  error
}

// object wants a JSON object with no other fields than those that are known.
func (n node) object(known ...string) *object {
	o := &object{line: n.line, of: make(map[string]node)}
	if n.kind != '{' {
		o.err = fmt.Errorf("line %d: want an object with the fields %s", n.line, strings.Join(known, ", "))
	}
	for _, m := range n.members {
		name := string(m.name)
		if !slices.Contains(known, name) && o.err == nil {
			o.err = fmt.Errorf("line %d: unknown field %s: want %s", m.value.line, shownName(name), strings.Join(known, ", "))
		}
		o.of[name] = m.value
	}
	return o
}

// fail does not repeat the field's value: a key may have been pasted into it.
func (o *object) fail(n node, field, want string) {
	if o.err == nil {
		o.err = fmt.Errorf("line %d: field %s: %s", n.line, field, want)
	}
}

// field returns a field of a kind.
func (o *object) field(name string, required bool, kinds, want string) (n node, ok bool) {
	n, ok = o.of[name]
	switch {
	case !ok && required:
		o.fail(node{line: o.line}, name, "is missing: want "+want)
	case ok && strings.IndexByte(kinds, n.kind) < 0:
		o.fail(n, name, "want "+want)
	default:
		return n, ok
	}
	return n, false
}

func (o *object) list(name string, required bool) []node {
	n, _ := o.field(name, required, "[", "a list, such as []")
	return n.items
}

// text returns a string of a form, which nil leaves open.
func (o *object) text(name string, required bool, form *regexp.Regexp, want string) string {
	if form == nil {
		want = "a string"
	}
	n, ok := o.field(name, required, `"`, want)
	if ok && form != nil && !form.MatchString(string(n.text)) {
		o.fail(n, name, "want "+want)
	}
	return string(n.text)
}

// number returns a number between leastRate and mostRate, and 0 if there is none.
func (o *object) number(name, want string) float64 {
	n, ok := o.field(name, false, "0", want)
	if !ok {
		return 0
	}
	f, err := strconv.ParseFloat(n.number, 64)
	if err != nil || f < leastRate || f > mostRate {
		o.fail(n, name, "want "+want)
	}
	return f
}

func (o *object) toggle(name string) bool {
	n, _ := o.field(name, false, "tf", "true or false")
	return n.kind == 't'
}

func (o *object) time(name string, required bool) time.Time {
	const want = "a time as 2026-05-21T09:42:00Z (RFC 3339)"
	n, ok := o.field(name, required, `"`, want)
	if !ok {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, string(n.text))
	if err != nil || t.IsZero() {
		o.fail(n, name, "want "+want)
	}
	return t
}
