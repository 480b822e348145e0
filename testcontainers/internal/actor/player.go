package actor

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// Main is a TestMain: it plays the role that the variable holds, if there is one, until
// the test that wants it ends; and otherwise runs the tests, and wants them to leave no
// goroutine behind but those of the options.
func Main(m *testing.M, variable string, play func(role string) error, options ...goleak.Option) {
	if role := os.Getenv(variable); role != "" {
		endWithTheTest()
		if err := play(role); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m, options...)
}

// endWithTheTest has this process end when the test that has started it does, in
// whatever way.
func endWithTheTest() {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
}

// A Player is the other side of a Process: it plays the role. The zero value is
// ready.
type Player struct {
	out           sync.Mutex
	opportunities atomic.Int64
}

// Say says a line that the test may wait for.
func (p *Player) Say(what string, args ...any) {
	p.out.Lock()
	defer p.out.Unlock()
	fmt.Fprintf(os.Stdout, what+"\n", args...)
}

// Suffer has something happen to this process, once it has been called more than
// so many times: it is killed or, with freeze, stopped until the test lets it go
// on. It says "dying" or "freezing" and the key before, and reports whether it was stopped.
func (p *Player) Suffer(freeze bool, after int, key string) (stopped bool) {
	if p.opportunities.Add(1) != int64(after)+1 {
		return false
	}
	if freeze {
		thawed := make(chan os.Signal, 1)
		signal.Notify(thawed, syscall.SIGCONT)
		p.Say("freezing %s", key)
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		<-thawed // this thread may be the last one that stops
		return true
	}
	p.Say("dying %s", key)
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}
