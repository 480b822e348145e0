// Package durable knows the settings of Postgres and of the brokers with which what was
// acknowledged can be lost, or happen again. It says of each what can be lost and what
// helps. Programs warn of them when they start, and the doctor reports them, in the same
// words.
package durable

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A Warning is about one setting. Users may choose it, so it is no error.
type Warning struct {
	Check string // the doctor's name for it
	Found string // what is set
	Why   string // what can be lost
	Do    string // what helps

	// Grave means that the crash of one server is enough to lose something.
	Grave bool

	// Where is the server, where Found does not name it.
	Where string
}

// told are the Warnings that this process has logged, by what and where they are about.
var told sync.Map

// Tell logs those that this process has not logged yet, a line each.
func Tell(ctx context.Context, logger *slog.Logger, warnings []Warning) {
	for _, w := range warnings {
		if _, before := told.LoadOrStore([2]string{w.Where, w.Found}, nil); !before {
			logger.WarnContext(ctx, "oncemill: "+w.Found, "check", w.Check, "why", w.Why, "do", w.Do)
		}
	}
}

// Seconds rounds a time for people.
func Seconds(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return strconv.Itoa(int(d/(24*time.Hour))) + " days"
	case d >= time.Hour:
		d = d.Round(time.Minute)
	case d >= time.Second:
		d = d.Round(time.Second)
	default:
		d = d.Round(time.Millisecond)
	}
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// Lasting is for how long messages are kept: 0 or less is for ever.
func Lasting(d time.Duration) string {
	if d <= 0 {
		return "ever"
	}
	return Seconds(d)
}

func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
