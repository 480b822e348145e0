package jetstream

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// longestSubject keeps a subject, with what stands beside it in the protocol,
// within the 4,096 bytes that a server takes for a control line. A longer one
// makes the server close the connection.
const longestSubject = 3840

var errNoTopic = errors.New("no topic: give the NATS subject")

// checkSubject tells what is wrong with a subject, in the words of somebody who
// set a Watermill topic.
func checkSubject(subject string, wildcards bool) error {
	switch {
	case subject == "":
		return errNoTopic
	case len(subject) > longestSubject:
		return fmt.Errorf("topic %q... is no NATS subject: its %d bytes are more than %d", subject[:64], len(subject), longestSubject)
	case !utf8.ValidString(subject):
		return fmt.Errorf("topic %q is no NATS subject: it is not valid UTF-8", subject)
	case strings.HasPrefix(subject, "$JS.") || strings.HasPrefix(subject, "$SYS."):
		return fmt.Errorf("topic %q is a subject of the server's own interface", subject)
	}
	for _, r := range subject {
		if r <= ' ' || r == 0x7f {
			return fmt.Errorf("topic %q is no NATS subject: it contains a space or a control character", subject)
		}
	}
	tokens := strings.Split(subject, ".")
	for i, token := range tokens {
		switch {
		case token == "":
			return fmt.Errorf("topic %q is no NATS subject: it has an empty part between its dots", subject)
		case (token == "*" || token == ">") && !wildcards:
			return fmt.Errorf("topic %q is a pattern: a message needs one subject", subject)
		case token == ">" && i < len(tokens)-1:
			return fmt.Errorf("topic %q is no NATS subject: > can only be its last part", subject)
		}
	}
	return nil
}

// durableName is the name of the consumer that the members of a group share for
// a topic. Names of consumers cannot have dots and wildcards, so those are
// written otherwise, and in such a way that no two topics get the same name.
func durableName(group, topic string) string {
	var b strings.Builder
	b.WriteString(group)
	b.WriteByte('~')
	for i := range len(topic) {
		switch c := topic[i]; {
		case c == '.':
			b.WriteByte('~')
		case c <= ' ' || c >= 0x7f || strings.IndexByte("~=*>/\\", c) >= 0:
			fmt.Fprintf(&b, "=%02X", c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

func checkGroup(group string) error {
	for i := range len(group) {
		if c := group[i]; c <= ' ' || c >= 0x7f || strings.IndexByte("~=*>./\\", c) >= 0 {
			return fmt.Errorf("Subscriber.Group %q contains %q: it becomes part of the name of a JetStream consumer, use letters, digits, - and _", group, c)
		}
	}
	return nil
}
