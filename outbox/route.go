package outbox

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A Route sends the rows of some topics to a Sink of a Router.
type Route struct {
	// Topics is a topic, or a pattern: each * in it stands for any characters,
	// none and dots among them. "orders.*" has orders.paid and orders.eu.paid,
	// "audit-*" has audit-logins, "*.dead" all that end so, "*" all topics.
	Topics string

	// Sink is the name of one of Router.Sinks.
	Sink string
}

// has reports whether a topic is among the Route's.
func (r Route) has(topic string) bool {
	part, rest, wild := strings.Cut(r.Topics, "*")
	if !wild {
		return topic == part
	}
	topic, ok := strings.CutPrefix(topic, part)
	for ok {
		if part, rest, wild = strings.Cut(rest, "*"); !wild {
			return strings.HasSuffix(topic, part)
		}
		_, topic, ok = strings.Cut(topic, part) // the first place leaves most to the others
	}
	return false
}

// covers reports whether all topics of another Route are among this one's. It is
// enough to look at one topic of the other, in which a character that no pattern
// has stands for each *: only a * can have matched it, and that would match
// whatever stood in its place.
func (r Route) covers(other Route) bool {
	return r.has(strings.ReplaceAll(other.Topics, "*", anyCharacter))
}

const anyCharacter = "\x00"

// route returns the name of the Sink for a topic.
func (r *Router) route(topic string) (name string, ok bool) {
	for _, one := range r.Routes {
		if one.has(topic) {
			return one.Sink, true
		}
	}
	return "", false
}

// Validate returns nil if the Router's fields make sense: each Route has a pattern
// and a Sink that is there, none is out of reach behind those before it, and each
// Sink has a Route. It asks no broker. Relay.Check calls it, as it calls that of any
// Sink with a method of this kind.
func (r *Router) Validate() error {
	if len(r.Sinks) == 0 {
		return errors.New("outbox: Router.Sinks is empty: set it to where messages go, by name")
	}
	if len(r.Routes) == 0 {
		return errors.New(`outbox: Router.Routes is empty: say which topics go to which sink; {Topics: "*", Sink: "name"} is all of them`)
	}
	used := make(map[string]bool)
	for i, route := range r.Routes {
		if err := r.validateRoute(i); err != nil {
			return fmt.Errorf("outbox: Router.Routes: %w", err)
		}
		used[route.Sink] = true
	}
	for _, name := range r.names() {
		switch sink := r.Sinks[name].(type) {
		case nil:
			return fmt.Errorf("outbox: Router.Sinks: sink %q is nil: set it to where its messages go", name)
		case validator:
			if err := sink.Validate(); err != nil {
				return fmt.Errorf("outbox: Router.Sinks: sink %q: %w", name, err)
			}
		}
		if !used[name] {
			return fmt.Errorf("outbox: Router.Sinks: no route leads to sink %q: add one, or leave the sink out", name)
		}
	}
	return nil
}

// A validator is a Sink that can look at its own fields.
type validator interface{ Validate() error }

func (r *Router) validateRoute(i int) error {
	route := r.Routes[i]
	switch {
	case route.Topics == "":
		return fmt.Errorf("route %d, to sink %q, has no topics: give a topic or a pattern such as orders.*", i+1, route.Sink)
	case strings.Contains(route.Topics, anyCharacter):
		return fmt.Errorf("route %d, %q, contains NUL: no topic does", i+1, route.Topics)
	case route.Topics == ">", strings.HasSuffix(route.Topics, ".>"):
		return fmt.Errorf("route %d, %q: no topic ends with >; write %q: here a * stands for any characters, dots too", i+1, route.Topics, strings.TrimSuffix(route.Topics, ">")+"*")
	}
	if _, ok := r.Sinks[route.Sink]; !ok {
		return fmt.Errorf("route %d, %q, leads to sink %q, which is not there: there are %s", i+1, route.Topics, route.Sink, strings.Join(r.names(), ", "))
	}
	for k, before := range r.Routes[:i] {
		if before.covers(route) {
			return fmt.Errorf("route %d, %q, is never reached: route %d, %q, comes first and has all its topics; put it before that one, or leave it out", i+1, route.Topics, k+1, before.Topics)
		}
	}
	return nil
}

func (r *Router) names() []string { return slices.Sorted(maps.Keys(r.Sinks)) }
