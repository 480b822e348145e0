package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
)

// statusEvery is how often the status is shown where it cannot be overwritten.
const statusEvery = 2 * time.Second

// A screen shows lines, and below them a status. On a terminal that is one line
// that changes; elsewhere it is a line now and then.
type screen struct {
	out     io.Writer
	live    bool
	current string // the status that a live screen shows
	begun   time.Time
	shown   time.Time // when the status was, last
	err     error     // nobody can see it any more
}

func newScreen(out *os.File) *screen {
	info, err := out.Stat()
	live := err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
	return &screen{out: out, live: live}
}

func (s *screen) title(format string, args ...any) {
	s.print("\n" + fmt.Sprintf(format, args...) + "\n")
}

// restart sets the clock to zero.
func (s *screen) restart() { s.begun, s.shown = time.Now(), time.Now() }

func (s *screen) line(text string) {
	s.clear()
	s.print(fmt.Sprintf("%5.1fs  %s\n", time.Since(s.begun).Seconds(), text))
	s.draw()
}

func (s *screen) status(text string) {
	if s.live {
		s.clear()
		s.current = fmt.Sprintf("%5.1fs  %s", time.Since(s.begun).Seconds(), text)
		s.draw()
	} else if time.Since(s.shown) >= statusEvery {
		s.shown = time.Now()
		s.line(text)
	}
}

// end leaves the status as it is.
func (s *screen) end() {
	if s.current != "" {
		s.print("\n")
	}
	s.current = ""
}

func (s *screen) clear() {
	if s.current != "" {
		s.print("\r\x1b[K")
	}
}

// draw shows the status without a break at the terminal's right edge, since what
// has been broken could not be overwritten.
func (s *screen) draw() {
	if s.current != "" {
		s.print("\x1b[?7l" + s.current + "\x1b[?7h")
	}
}

func (s *screen) print(text string) {
	if _, err := io.WriteString(s.out, text); err != nil {
		s.err = err
	}
}

// thousands writes 10000 as 10,000.
func thousands(n int) string {
	text := strconv.Itoa(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
