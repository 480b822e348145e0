// Package screen shows how far a demo is.
package screen

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
)

// statusEvery is how often the status is shown where it cannot be overwritten.
const statusEvery = 2 * time.Second

// A Screen shows lines, and below them a status. On a terminal that is one line
// that changes; elsewhere it is a line now and then.
type Screen struct {
	out     io.Writer
	live    bool
	current string // the status that a live screen shows
	begun   time.Time
	shown   time.Time // when the status was, last
	Err     error     // nobody can see it any more
}

// New returns a screen on a file, such as os.Stdout.
func New(out *os.File) *Screen {
	info, err := out.Stat()
	live := err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
	return &Screen{out: out, live: live}
}

// Title shows a line above everything that follows.
func (s *Screen) Title(format string, args ...any) {
	s.print("\n" + fmt.Sprintf(format, args...) + "\n")
}

// Restart sets the clock to zero.
func (s *Screen) Restart() { s.begun, s.shown = time.Now(), time.Now() }

// Line shows a line that stays.
func (s *Screen) Line(text string) {
	s.clear()
	s.print(fmt.Sprintf("%5.1fs  %s\n", time.Since(s.begun).Seconds(), text))
	s.draw()
}

// Status shows a text in place of the one before, on a terminal, and elsewhere now and
// then.
func (s *Screen) Status(text string) {
	if s.live {
		s.clear()
		s.current = fmt.Sprintf("%5.1fs  %s", time.Since(s.begun).Seconds(), text)
		s.draw()
	} else if time.Since(s.shown) >= statusEvery {
		s.shown = time.Now()
		s.Line(text)
	}
}

// End leaves the status as it is.
func (s *Screen) End() {
	if s.current != "" {
		s.print("\n")
	}
	s.current = ""
}

func (s *Screen) clear() {
	if s.current != "" {
		s.print("\r\x1b[K")
	}
}

// draw shows the status without a break at the terminal's right edge, since what
// has been broken could not be overwritten.
func (s *Screen) draw() {
	if s.current != "" {
		s.print("\x1b[?7l" + s.current + "\x1b[?7h")
	}
}

func (s *Screen) print(text string) {
	if _, err := io.WriteString(s.out, text); err != nil {
		s.Err = err
	}
}

// Thousands writes 10000 as 10,000.
func Thousands(n int) string {
	text := strconv.Itoa(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
