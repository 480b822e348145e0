package doctor_test

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oncemill/oncemill/internal/doctor"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/process"
)

// A real PgBouncer is found, whatever its mode, and what it takes away.
func TestPgBouncerIsFound(t *testing.T) {
	t.Parallel()
	path := pgbouncer(t)
	server := start(t, testcontainers.PostgresOptions{Volatile: true})
	database := testcontainers.DatabaseOn(t, server)
	for mode, test := range map[string]struct {
		level doctor.Level
		check string
		words []string
	}{
		"session":     {doctor.OK, "pooler", []string{"session mode"}},
		"transaction": {doctor.Warn, "pooler", []string{"transaction mode", "LISTEN", "--poll-interval", "oncemill relay --listen-url"}},
		"statement":   {doctor.Fail, "pooler", []string{"statement mode", "pool_mode"}},
	} {
		t.Run(mode, func(t *testing.T) {
			found := look(t, doctor.Postgres{URL: behind(t, path, database.URL, mode, "")})
			want(t, found, test.level, test.check, test.words...)
			if mode == "statement" {
				want(t, found, doctor.Skip, "the rest")
				return
			}
			if mode == "transaction" {
				want(t, found, doctor.Warn, "parameters", "is not in the connection string", "add binary_parameters=yes", "pgx needs nothing")
				found = look(t, doctor.Postgres{URL: behind(t, path, database.URL, mode, "") + "&binary_parameters=yes"})
			}
			want(t, found, doctor.OK, "parameters")
			want(t, found, doctor.OK, "schema")
			want(t, found, doctor.OK, "vacuum")
		})
	}
	t.Run("prepared statements", func(t *testing.T) {
		if keeps(t, path) {
			want(t, look(t, doctor.Postgres{URL: behind(t, path, database.URL, "transaction", "max_prepared_statements = 100")}), doctor.OK, "prepared statements")
			want(t, look(t, doctor.Postgres{URL: behind(t, path, database.URL, "transaction", "max_prepared_statements = 0")}), doctor.Fail, "prepared statements", "claims fail at random")
			return
		}
		want(t, look(t, doctor.Postgres{URL: behind(t, path, database.URL, "transaction", "")}), doctor.Fail, "prepared statements", "claims fail at random", "1.21", "max_prepared_statements")
	})
	want(t, look(t, doctor.Postgres{URL: database.URL}), doctor.OK, "pooler", "none")
}

// pgbouncer returns the program. Where it is missing the test is left out, and says so.
func pgbouncer(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"pgbouncer", "/usr/sbin/pgbouncer"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	complain := t.Skip
	if os.Getenv("ONCEMILL_TEST_REQUIRE_PGBOUNCER") == "1" {
		complain = t.Fatal
	}
	complain("needs PgBouncer: install it (Debian: pgbouncer)")
	return ""
}

// keeps reports whether this PgBouncer can keep prepared statements.
func keeps(t *testing.T, path string) bool {
	t.Helper()
	out, err := exec.Command(path, "--version").Output()
	must(t, err)
	var major, minor int
	if _, err := fmt.Sscanf(string(out), "PgBouncer %d.%d", &major, &minor); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	return major > 1 || minor >= 21
}

// behind starts a PgBouncer in front of a database and returns its address.
func behind(t *testing.T, path, address, mode, more string) string {
	t.Helper()
	u, err := url.Parse(address)
	must(t, err)
	password, _ := u.User.Password()
	port, err := process.FreePort()
	must(t, err)
	dir, err := os.MkdirTemp("", "oncemill-pgbouncer-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755)) // it does not run as root
	config, users := filepath.Join(dir, "pgbouncer.ini"), filepath.Join(dir, "users")
	must(t, os.WriteFile(users, fmt.Appendf(nil, "%q %q\n", u.User.Username(), password), 0o644))
	must(t, os.WriteFile(config, fmt.Appendf(nil, `
[databases]
* = host=127.0.0.1 port=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = plain
auth_file = %s
pool_mode = %s
default_pool_size = 5
ignore_startup_parameters = extra_float_digits
%s
`, u.Port(), port, users, mode, more), 0o644))
	cmd := exec.Command(path, config)
	if os.Geteuid() == 0 {
		cmd.Args = append(cmd.Args, "-u", "nobody")
	}
	var log testenv.Log
	cmd.Stderr = &log
	must(t, cmd.Start())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }() // its log tells
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	until(t, "PgBouncer is up", func() bool {
		select {
		case <-ended:
			t.Fatalf("PgBouncer has ended:\n%s", log.String())
		default:
		}
		return strings.Contains(log.String(), "process up")
	})
	u.Host = fmt.Sprintf("127.0.0.1:%d", port)
	return u.String()
}
