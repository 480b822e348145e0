package doctor_test

import (
	"database/sql"
	"fmt"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/oncemill/oncemill/internal/doctor"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/cache"
	"github.com/oncemill/oncemill/testcontainers/internal/own"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is for what should happen soon, on a busy machine.
const patience = 40 * time.Second

const week = 7 * 24 * time.Hour

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// until waits for a state of which there is no signal.
func until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func execute(t testing.TB, db *sql.DB, statements string) {
	t.Helper()
	if _, err := db.Exec(statements); err != nil {
		t.Fatalf("%s: %v", statements, err)
	}
}

// start starts a Postgres of the test's own.
func start(t *testing.T, options testcontainers.PostgresOptions) *testcontainers.PostgresServer {
	t.Helper()
	return own.Postgres(t, options)
}

// secret is the password of roles.
const secret = "hunter2"

// asRole makes a role with the grants of another and returns the database's URL for it.
func asRole(t *testing.T, database *testcontainers.Database, name string, role doctor.Role) string {
	t.Helper()
	execute(t, database.DB, fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'; %s", name, secret, role.Grants(6).SQL("", name)))
	u, err := url.Parse(database.URL)
	must(t, err)
	u.User = url.UserPassword(name, secret)
	return u.String()
}

// look has the doctor look at a database.
func look(t *testing.T, p doctor.Postgres) []doctor.Finding {
	t.Helper()
	p.Retention = week
	findings, _ := p.Check(t.Context())
	return findings
}

// want wants a finding of a level that says all of words.
func want(t *testing.T, findings []doctor.Finding, level doctor.Level, check string, words ...string) {
	t.Helper()
	for _, f := range findings {
		text := strings.Join([]string{f.Found, f.Why, f.Do}, " | ")
		missing := false
		for _, word := range words {
			missing = missing || !strings.Contains(text, word)
		}
		if f.Level == level && f.Check == check && !missing {
			return
		}
	}
	t.Errorf("no %s about %s with %q in %v", level, check, words, findings)
}

// program builds the command.
var program = sync.OnceValues(func() (path string, err error) {
	path, unlock, err := cache.Prepare("oncemill-doctor")
	if err != nil {
		return "", err
	}
	defer unlock()
	if out, err := exec.Command("go", "build", "-o", path, "github.com/oncemill/oncemill/cmd/oncemill").CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// run runs `oncemill doctor`.
func run(t *testing.T, flags ...string) (code int, output string) {
	t.Helper()
	path, err := program()
	must(t, err)
	cmd := exec.Command(path, append([]string{"doctor"}, flags...)...)
	cmd.Env = []string{} // not the test's
	out, err := cmd.Output()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), secret) {
		t.Errorf("the password is told:\n%s", out)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// open is testenv.Open.
func open(t *testing.T, address string) *sql.DB {
	t.Helper()
	return testenv.Open(t, address)
}
