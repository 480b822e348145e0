package postgres_test

import (
	"bufio"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/lib/pq"
)

// However a program ends, also by SIGKILL, no server and no file of a server
// outlives it.
func TestNothingOutlivesAKilledProgram(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"running", "frozen"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			program := exec.Command(os.Args[0])
			program.Env = append(os.Environ(), parentVariable+"="+what)
			program.Stderr = os.Stderr
			input, err := program.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			output, err := program.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := program.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = program.Wait() }() // it ended as it should: killed
			defer func() { _ = program.Process.Kill() }()

			lines := bufio.NewScanner(output)
			lines.Scan()
			files, pids := inspect(t, lines.Text())
			if len(pids) < 3 {
				t.Fatalf("found the processes %v, which are too few", pids)
			}
			if _, err := input.Write([]byte("go on\n")); err != nil {
				t.Fatal(err)
			}
			if lines.Scan(); lines.Text() != "ready" {
				t.Fatalf("the program said %q", lines.Text())
			}
			if err := program.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			for _, pid := range pids {
				eventually(t, "process "+strconv.Itoa(pid)+" has ended", func() bool { return !exists(pid) })
			}
			eventually(t, files+" is removed", func() bool {
				_, err := os.Stat(files)
				return os.IsNotExist(err)
			})
		})
	}
}

// inspect returns a server's directory and the pids of its processes.
func inspect(t *testing.T, address string) (dir string, pids []int) {
	t.Helper()
	db := open(t, address)
	defer db.Close()
	dir = query[string](t, db, "SELECT current_setting('data_directory')")
	file := query[string](t, db, "SELECT pg_read_file('postmaster.pid')")
	first, _, _ := strings.Cut(file, "\n")
	postmaster, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	var backends []int64
	rows := db.QueryRowContext(t.Context(),
		"SELECT array_agg(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
	if err := rows.Scan(pq.Array(&backends)); err != nil {
		t.Fatal(err)
	}
	pids = append(pids, postmaster)
	for _, pid := range backends {
		pids = append(pids, int(pid))
	}
	return dir, pids
}

// exists tells whether a process is there and has not ended.
func exists(pid int) bool {
	err := exec.Command("kill", "-0", strconv.Itoa(pid)).Run()
	return err == nil && !zombie(pid)
}

// zombie tells whether a process has ended and only waits to be collected.
func zombie(pid int) bool {
	state, _ := exec.Command("ps", "-o", "state=", "-p", strconv.Itoa(pid)).Output()
	return strings.HasPrefix(strings.TrimSpace(string(state)), "Z")
}
