package deploy_test

import (
	"crypto/rand"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oncemill/oncemill/internal/testenv"
)

// unitOf returns the settings of a systemd unit, by their names.
func unitOf(t *testing.T, name string) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("systemd/" + name + ".service")
	must(t, err)
	settings := make(map[string][]string)
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && line[0] != '#' {
			settings[name] = append(settings[name], value)
		}
	}
	return settings
}

// execStart returns the arguments of a unit's program, with its credentials in a directory.
func execStart(t *testing.T, name, credentials string) []string {
	t.Helper()
	lines := unitOf(t, name)["ExecStart"]
	if len(lines) != 1 {
		t.Fatalf("%s has %d lines ExecStart", name, len(lines))
	}
	words := strings.Fields(strings.ReplaceAll(lines[0], "%d/", credentials+"/"))
	if words[0] != "/usr/local/bin/oncemill" {
		t.Fatalf("%s starts %s", name, words[0])
	}
	return words[1:]
}

// runUnit runs what a unit starts, as systemd does that waits until it says it is ready,
// and stops it. ask asks it in between.
func runUnit(t *testing.T, name, credentials, port string, ask func(addr string), env ...string) {
	t.Helper()
	oncemill, err := program()
	must(t, err)
	dir, err := os.MkdirTemp("", "oncemill-notify-") // t.TempDir can be too long for a socket
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "socket"), Net: "unixgram"})
	must(t, err)
	defer socket.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	addr := listener.Addr().String()
	must(t, listener.Close())
	words := execStart(t, name, credentials)
	for i := range words {
		words[i] = strings.Replace(strings.Replace(words[i], "=127.0.0.1:"+port, "="+addr, 1), "=:"+port, "="+addr, 1)
	}
	cmd := exec.Command(oncemill, words...)
	cmd.Env = append(env, "NOTIFY_SOCKET="+filepath.Join(dir, "socket"))
	var log strings.Builder
	cmd.Stderr = &log
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait(); socket.Close() }()
	t.Cleanup(func() { cmd.Process.Kill() })
	hear := func(want string) {
		t.Helper()
		buffer := make([]byte, 100)
		n, err := socket.Read(buffer)
		if err != nil || string(buffer[:n]) != want {
			t.Fatalf("%s says %q (%v), want %s", name, buffer[:n], err, want)
		}
	}
	must(t, socket.SetReadDeadline(time.Now().Add(patience)))
	hear("READY=1")
	ask(addr)
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	hear("STOPPING=1")
	if err := <-ended; err != nil {
		t.Errorf("%s, after SIGTERM: %v\n%s", name, err, &log)
	}
}

// answers200 asks until a program is ready: the first round of a relay takes a moment.
func answers200(t *testing.T, client *http.Client, url string) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		response, err := client.Get(url)
		must(t, err)
		response.Body.Close()
		if response.StatusCode == http.StatusOK {
			return
		}
		if time.Since(began) > patience {
			t.Fatalf("GET %s answers %s", url, response.Status)
		}
	}
}

func TestTheUnitOfTheRelayStartsAndStops(t *testing.T) {
	t.Parallel()
	transport := new(http.Transport)
	defer transport.CloseIdleConnections()
	runUnit(t, "oncemill-relay", "", "8080", func(addr string) {
		answers200(t, &http.Client{Transport: transport}, "http://"+addr+"/readyz")
	}, "ONCEMILL_DATABASE_URL="+testenv.PostgresURL(t), "ONCEMILL_NATS_URL="+testenv.NATSURL(t))
}

func TestTheUnitOfTheGuardStartsAndStops(t *testing.T) {
	t.Parallel()
	oncemill, err := program()
	must(t, err)
	etc := t.TempDir()
	if out, err := exec.Command(oncemill, "guard", "tenants", "add", "acme", "--tenants", filepath.Join(etc, "tenants.json")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	must(t, os.WriteFile(filepath.Join(etc, "token"), []byte(strings.ToLower(rand.Text()+rand.Text())), 0o400))
	certificate(t, etc)
	for _, load := range unitOf(t, "oncemill-guard")["LoadCredential"] {
		name, file, _ := strings.Cut(load, ":")
		if _, err := os.Stat(filepath.Join(etc, name)); err != nil || file != "/etc/oncemill/"+name {
			t.Errorf("LoadCredential=%s: not what ExecStart reads", load)
		}
	}
	transport := insecure()
	defer transport.CloseIdleConnections()
	runUnit(t, "oncemill-guard", etc, "8443", func(addr string) {
		answers200(t, &http.Client{Transport: transport}, "https://"+addr+"/readyz")
	}, "ONCEMILL_DATABASE_URL="+testenv.PostgresURL(t))
}

// What drains is not killed, and what ends is started again.
func TestTheUnitsGiveTimeToDrain(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"oncemill-relay", "oncemill-guard"} {
		unit := unitOf(t, name)
		var drain string
		for _, word := range execStart(t, name, "") {
			if value, ok := strings.CutPrefix(word, "--drain-timeout="); ok {
				drain = value
			}
		}
		takes, err := time.ParseDuration(drain)
		must(t, err)
		stops, err := time.ParseDuration(unit["TimeoutStopSec"][0])
		must(t, err)
		if stops < takes+10*time.Second {
			t.Errorf("%s: TimeoutStopSec=%v, --drain-timeout=%v", name, stops, takes)
		}
		if unit["Restart"][0] != "always" || unit["StartLimitIntervalSec"][0] != "0" {
			t.Errorf("%s is not started again whenever it ends", name)
		}
	}
}

func TestSystemdTakesTheUnits(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("needs systemd-analyze (Debian: systemd)")
	}
	oncemill, err := program()
	must(t, err)
	dir := t.TempDir()
	for _, name := range []string{"oncemill-relay", "oncemill-guard"} {
		text, err := os.ReadFile("systemd/" + name + ".service")
		must(t, err)
		file := filepath.Join(dir, name+".service")
		must(t, os.WriteFile(file, []byte(strings.Replace(string(text), "/usr/local/bin/oncemill", oncemill, 1)), 0o600))
		// It says what it does not know or take, and how much is left open, of 10.
		for _, args := range [][]string{{"verify", "--man=no", file}, {"security", "--offline=true", "--no-pager", "--threshold=20", file}} {
			out, err := exec.Command("systemd-analyze", args...).CombinedOutput()
			if err != nil || args[0] == "verify" && len(out) > 0 {
				t.Errorf("systemd-analyze %s: %v\n%s", strings.Join(args, " "), err, out)
			}
		}
	}
}
