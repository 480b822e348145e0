package main_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oncemill/oncemill/internal/testenv"
)

// guardProcess starts the built binary as a guard.
func guardProcess(t *testing.T, url string, flags ...string) (cmd *exec.Cmd, addr string, log *testenv.Log) {
	t.Helper()
	path, err := binary()
	must(t, err)
	cmd = exec.Command(path, append([]string{"guard", "--listen", "127.0.0.1:0", "--database-url", url}, flags...)...)
	log = new(testenv.Log)
	cmd.Stderr = log
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd, guardAddress(t, log), log
}

// What a guard has begun it finishes before it ends, and begins nothing any more.
func TestSIGTERMFinishesRequestsOfAGuard(t *testing.T) {
	t.Parallel()
	url := testenv.PostgresURL(t)
	db := testenv.Open(t, url)
	cmd, addr, log := guardProcess(t, url)
	g := &guarding{t: t, addr: addr, client: &http.Client{Timeout: time.Minute}}
	defer g.client.CloseIdleConnections()
	token := g.claim("a")

	blocker, err := db.BeginTx(t.Context(), nil)
	must(t, err)
	defer blocker.Rollback()
	_, err = blocker.Exec(`LOCK TABLE oncemill.events IN EXCLUSIVE MODE`)
	must(t, err)
	type answer struct {
		status int
		fields map[string]any
		err    error
	}
	answered := make(chan answer, 1)
	go func() {
		status, fields, err := postTo(g.client, "http://"+addr+"/release/a", "", token)
		answered <- answer{status, fields, err}
	}()
	poll(t, func() bool {
		var waiting bool
		must(t, db.QueryRow(`SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'oncemill.events'::regclass)`).Scan(&waiting))
		return waiting
	})
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	poll(t, func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	must(t, blocker.Rollback())
	if got := <-answered; got.err != nil || got.status != 200 || got.fields["status"] != "released" {
		t.Errorf("got %d %v %v", got.status, got.fields, got.err)
	}
	if state := exited(t, cmd); state.ExitCode() != 0 || !strings.Contains(log.String(), "guard has stopped") {
		t.Errorf("%v:\n%s", state, log)
	}
}

// A request that does not end is cut off after --drain-timeout, and the guard ends.
func TestDrainTimeoutEndsAGuard(t *testing.T) {
	t.Parallel()
	cmd, addr, log := guardProcess(t, testenv.PostgresURL(t), "--drain-timeout", "100ms")
	conn, err := net.Dial("tcp", addr)
	must(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte("POST /claim HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n"))
	must(t, err)
	line, err := bufio.NewReader(conn).ReadString('\n') // its handler reads
	if err != nil || !strings.Contains(line, "100 Continue") {
		t.Fatalf("got %q, %v", line, err)
	}
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	if state := exited(t, cmd); state.ExitCode() != 0 || !strings.Contains(log.String(), "still under way after --drain-timeout") {
		t.Errorf("%v:\n%s", state, log)
	}
}

// Clients that send slowly are cut off, however many there are, and keep nobody waiting.
func TestSlowClientsAreCutOffAndHoldUpNobody(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes 15 seconds: the guard's own timeouts")
	}
	url := testenv.PostgresURL(t)
	g := startGuard(t, url, "--connections", "2")
	begun := map[string]string{
		"header": "POST /claim HTTP/1.1\r\nHost: localhost\r\n",
		"body":   "POST /claim HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n{\"request_id\":\"slow\",\"action\":\"",
		"piece":  "POST /claim HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n{\"request_id\":\"slow\",\"action\":\"",
		"idle":   "",
	}
	const each = 20
	over := make(chan error, each*len(begun))
	for name, text := range begun {
		for range each {
			go func() { over <- dribble(g.addr, name, text) }()
		}
	}
	for i := range 50 {
		start := time.Now()
		token := g.claim(fmt.Sprint("quick-", i))
		if status, _ := g.post(fmt.Sprint("/settle/quick-", i), `{"result":{}}`, token); status != 200 {
			t.Errorf("settle: %d", status)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("somebody else has waited for %v", took)
		}
	}
	for range cap(over) {
		if err := <-over; err != nil {
			t.Error(err)
		}
	}
	if status, fields := g.post("/claim", `{"request_id":"slow","action":"x"}`, ""); status != 200 || fields["status"] != "PROCEED" {
		t.Errorf("got %d %v: what was sent by halves has claimed", status, fields)
	}
}

// dribble sends a request byte by byte until it is cut off.
func dribble(addr, name, text string) error {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.Copy(conn, bytes.NewReader([]byte(text))); err != nil {
		return err
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		ticker := time.NewTicker(200 * time.Millisecond)
		defer ticker.Stop()
		for name != "idle" {
			select {
			case <-done:
				return
			case <-ticker.C:
				_, _ = conn.Write([]byte("x"))
			}
		}
	}()
	_ = conn.SetReadDeadline(time.Now().Add(45 * time.Second))
	answer, err := io.ReadAll(conn)
	if os.IsTimeout(err) {
		return fmt.Errorf("%s: nobody has cut it off", name)
	}
	if bytes.Contains(answer, []byte("200 OK")) {
		return fmt.Errorf("%s: got %s", name, answer)
	}
	return nil
}
