package hostile_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill/internal/storedkey"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/cache"
	"github.com/oncemill/oncemill/testcontainers/internal/hostile"
	"github.com/oncemill/oncemill/testcontainers/internal/process"
)

// guard starts `oncemill guard`, and returns its address.
func guard(t *testing.T, database string) (address string) {
	t.Helper()
	path, unlock, err := cache.Prepare("oncemill-hostile")
	must(t, err)
	out, err := exec.Command("go", "build", "-o", path, "github.com/oncemill/oncemill/cmd/oncemill").CombinedOutput()
	unlock()
	if err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	port, err := process.FreePort()
	must(t, err)
	address = fmt.Sprint("127.0.0.1:", port)
	log := filepath.Join(t.TempDir(), "log")
	daemon, err := process.Prepare("")
	must(t, err)
	ended := make(chan error, 1)
	go func() {
		ended <- daemon.Run(context.Background(), process.Command{Path: path, Log: log, Args: []string{"guard", "--listen", address, "--database-url", database}})
	}()
	logged := func() string {
		text, _ := os.ReadFile(log) // it is not there at first
		return string(text)
	}
	t.Cleanup(func() {
		must(t, daemon.Close())
		<-ended
		if strings.Contains(logged(), "panic") || t.Failed() {
			t.Errorf("the guard has logged:\n%s", logged())
		}
	})
	hostile.Until(t, "the guard serves", func() bool { return strings.Contains(logged(), "guard starts") }, logged)
	return address
}

// ask sends a request as it stands and returns the answer.
func ask(t *testing.T, address string, r hostile.Request) (status int, body string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(hostile.Patience)))
	if _, err := conn.Write([]byte(r.Raw)); err != nil && r.Status < 400 { // who refuses need not read to the end
		t.Errorf("%s: %v", r.Name, err)
	}
	if r.Cut {
		must(t, conn.(*net.TCPConn).CloseWrite())
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Errorf("%s: %v", r.Name, err)
		return 0, ""
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(answer.Body) // the connection may be reset behind the answer
	return answer.StatusCode, string(bytes.TrimSpace(text))
}

// Whatever is sent to the guard is answered, with the reason where it is refused, and
// claims what its answer says and nothing else; and the good request behind it is served.
func TestWhateverIsSentToTheGuardIsAccountedFor(t *testing.T) {
	t.Parallel()
	database := testcontainers.Postgres(t)
	address := guard(t, database.URL)
	var want []string
	for i, r := range hostile.Requests {
		if status, body := ask(t, address, r); status != r.Status || !strings.Contains(body, r.Says) {
			t.Errorf("%s: got %d %.300q, want %d and %q", r.Name, status, body, r.Status, r.Says)
		}
		if r.Claims != "" {
			want = append(want, storedkey.Of(r.Claims))
		}
		good := hostile.Good(i)
		want = append(want, good)
		if status, body := ask(t, address, hostile.GoodRequest(good)); status != 200 || !strings.Contains(body, "PROCEED") {
			t.Errorf("behind %s: got %d %q", r.Name, status, body)
		}
	}
	var got []string
	rows, err := database.DB.Query(`SELECT key FROM oncemill.claims`)
	must(t, err)
	defer rows.Close()
	for rows.Next() {
		var key string
		must(t, rows.Scan(&key))
		got = append(got, key)
	}
	must(t, rows.Err())
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("claimed are %q, want %q", got, want)
	}
}
