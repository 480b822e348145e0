// Package doctor looks at what Oncemill works with, Postgres and a broker, and says what
// it found, why that matters and what to do about it. It changes nothing.
package doctor

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill/internal/oneline"
)

// A Level says how bad a finding is.
type Level string

const (
	OK   Level = "OK"
	Warn Level = "WARN" // it works, but not under all circumstances
	Fail Level = "FAIL" // it does not work, or not as promised
	Skip Level = "SKIP" // nobody knows: it could not be looked at
)

// The parts that are looked at.
const (
	PartPostgres = "postgres"
	PartNATS     = "nats"
	PartKafka    = "kafka"
)

// A Finding is what one check has to say.
type Finding struct {
	Level Level  `json:"level"`
	Part  string `json:"part"`          // see PartPostgres and the others
	Check string `json:"check"`         // a short name, the same in every run
	Found string `json:"found"`         // one line
	Why   string `json:"why,omitempty"` // why that matters
	Do    string `json:"do,omitempty"`  // what helps
}

// findings are what one part has to say.
type findings struct {
	part string
	all  []Finding
}

func (f *findings) add(level Level, check, found, why, do string) {
	f.all = append(f.all, Finding{level, f.part, check, oneline.Of(found, mostFound), why, do})
}

func (f *findings) ok(check, format string, args ...any) {
	f.add(OK, check, fmt.Sprintf(format, args...), "", "")
}

func (f *findings) warn(check, found, why, do string) { f.add(Warn, check, found, why, do) }

func (f *findings) fail(check, found, why, do string) { f.add(Fail, check, found, why, do) }

func (f *findings) skip(check, found, do string) { f.add(Skip, check, found, "", do) }

// mostFound is how long a finding may be: names in it are those of strangers.
const mostFound = 600

// few joins names, the first of many.
func few(names []string) string {
	const most = 5
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// counted is a number with its noun, and most is where counting ended.
func counted(n, most int64, one, many string) string {
	switch {
	case n == 1:
		return "1 " + one
	case most > 0 && n > most:
		return fmt.Sprintf("more than %d %s", most, many)
	}
	return fmt.Sprintf("%d %s", n, many)
}

// isLost reports whether an error means that the connection is gone.
func isLost(err error) bool {
	var server *pq.Error
	if errors.As(err, &server) {
		return server.Code.Class() == "57" && server.Code != "57014" || server.Code.Class() == "08"
	}
	var network net.Error
	return errors.As(err, &network) || strings.Contains(err.Error(), "bad connection")
}
