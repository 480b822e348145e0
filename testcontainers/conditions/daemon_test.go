package conditions_test

import (
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/oncemill/oncemill/internal/testenv"
)

// A daemon is a running `oncemill relay`.
type daemon struct {
	t     testing.TB
	cmd   *exec.Cmd
	log   logbook
	ended chan struct{}
}

// relay starts a daemon on a site, with further flags.
func (s *site) relay(flags ...string) *daemon {
	s.t.Helper()
	path, err := program()
	must(s.t, err)
	flags = append([]string{"relay", "--database-url", s.database.URL, "--nats-url", s.natsURL, "--http", "127.0.0.1:0"}, flags...)
	d := &daemon{t: s.t, cmd: exec.Command(path, flags...), ended: make(chan struct{})}
	d.cmd.Stderr = &d.log
	d.cmd.Env = []string{} // not the test's
	must(s.t, d.cmd.Start())
	go func() {
		defer close(d.ended)
		_ = d.cmd.Wait() // its exit code tells
	}()
	s.t.Cleanup(func() {
		_ = d.cmd.Process.Kill() // no error if it has ended
		<-d.ended
		if s.t.Failed() {
			s.t.Logf("the relay has logged:\n%s", shortened(d.log.String()))
		}
	})
	d.log.await(s.t, "relay starts")
	return d
}

func shortened(text string) string {
	const most = 6000
	if len(text) > most {
		return text[:most/2] + "\n...\n" + text[len(text)-most/2:]
	}
	return text
}

// stop ends the daemon as an operator does, and wants it to go in peace.
func (d *daemon) stop() {
	d.t.Helper()
	must(d.t, d.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-d.ended:
	case <-time.After(patience):
		d.t.Fatal("the relay does not end")
	}
	if code := d.cmd.ProcessState.ExitCode(); code != 0 {
		d.t.Errorf("told to stop, it ends with exit code %d", code)
	}
}

var probesAt = regexp.MustCompile(`http=([0-9.:]+)`)

func (d *daemon) ready() bool {
	d.t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + probesAt.FindStringSubmatch(d.log.String())[1] + "/readyz")
	must(d.t, err)
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	must(d.t, err)
	return response.StatusCode == http.StatusOK
}

// usage returns what the daemon has used so far. ok is false where this system does
// not tell.
func (d *daemon) usage() (u usage, ok bool) {
	d.t.Helper()
	return usageOf(d.t, d.cmd.Process.Pid)
}

// A usage is what a process has used.
type usage struct {
	peak int           // bytes of memory at most
	cpu  time.Duration // of all processors together
}

const mib = 1 << 20

// wantMemory wants the daemon never to have had more memory than so many bytes.
func (d *daemon) wantMemory(most int) {
	d.t.Helper()
	u, ok := d.usage()
	d.t.Logf("%d MiB of memory at most (%v)", u.peak/mib, ok)
	if ok && u.peak > most {
		d.t.Errorf("it had %d MiB of memory, want at most %d", u.peak/mib, most/mib)
	}
}

// A logbook collects what is logged.
type logbook struct{ testenv.Log }

func (l *logbook) await(t testing.TB, words string) {
	t.Helper()
	until(t, words+" is logged", patience, func() bool { return l.Count(words) > 0 }, l.String)
}
