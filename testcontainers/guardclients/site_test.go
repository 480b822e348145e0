package guardclients_test

import (
	"bytes"
	"crypto/rand"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/process"
)

// root is the folder of the root module.
const root = "../.."

// built is the command oncemill, which the first test that needs it builds.
var built struct {
	once sync.Once
	dir  string
	err  error
}

func oncemill(t *testing.T) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "oncemill-guardclients-"); built.err != nil {
			return
		}
		build := exec.Command("go", "build", "-o", built.dir, "./cmd/oncemill")
		build.Dir = root
		if output, err := build.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build the command oncemill: %w\n%s", err, output)
		}
	})
	must(t, built.err)
	return filepath.Join(built.dir, "oncemill")
}

// A site is a database, and two guards on it.
type site struct {
	t     *testing.T
	db    *sql.DB
	dir   string
	audit string // the audit token
	env   []string
	urls  []string
}

// newSite starts guards with flags, besides those that all have.
func newSite(t *testing.T, flags ...string) *site {
	t.Helper()
	database := testcontainers.Postgres(t)
	s := &site{t: t, db: database.DB, dir: t.TempDir(), audit: rand.Text() + rand.Text()}
	s.env = append(os.Environ(), "ONCEMILL_DATABASE_URL="+database.URL)
	token := filepath.Join(s.dir, "audit-token")
	must(t, os.WriteFile(token, []byte(s.audit), 0o600))
	for range 2 {
		s.start(append([]string{"guard", "--listen", "127.0.0.1:0", "--audit-token-file", token}, flags...))
	}
	return s
}

var listens = regexp.MustCompile(`guard starts.* listen=(\S+)`)

// start starts a guard, and waits until it serves. At the end of the test it has to go in
// peace.
func (s *site) start(args []string) {
	s.t.Helper()
	log := filepath.Join(s.dir, fmt.Sprintf("guard-%d.log", len(s.urls)))
	guard, err := process.Prepare("")
	must(s.t, err)
	s.t.Cleanup(func() {
		if err := guard.Stop(limit); err != nil {
			s.t.Errorf("guard, told to stop: %v", err)
		}
		must(s.t, guard.Close())
		if text, _ := os.ReadFile(log); s.t.Failed() || bytes.Contains(text, []byte("level=ERROR")) {
			s.t.Logf("a guard logged:\n%s", text)
		}
	})
	must(s.t, guard.Start(process.Command{Path: oncemill(s.t), Args: args, Env: s.env, Dir: s.dir, Log: log}))
	for deadline := time.Now().Add(limit); ; {
		text, err := os.ReadFile(log)
		must(s.t, err)
		if found := listens.FindSubmatch(text); found != nil {
			s.urls = append(s.urls, "http://"+string(found[1]))
			return
		}
		if !guard.Running() || time.Now().After(deadline) {
			s.t.Fatalf("a guard does not serve:\n%s", text)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// command runs oncemill, and returns what it prints.
func command(t *testing.T, args ...string) string {
	t.Helper()
	output, err := exec.Command(oncemill(t), args...).Output()
	if err != nil {
		t.Fatalf("oncemill %s: %v", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(output))
}

// count counts with a query.
func (s *site) count(query string, args ...any) (n int) {
	s.t.Helper()
	must(s.t, s.db.QueryRow(query, args...).Scan(&n))
	return n
}

// wantClaim wants a claim to be in a state: "unsettled", or the outcome and the result.
func (s *site) wantClaim(consumer, key, want string) {
	s.t.Helper()
	var got string
	err := s.db.QueryRow(`SELECT COALESCE(outcome || COALESCE(' ' || convert_from(result, 'UTF8'), ''), 'unsettled')
		FROM oncemill.claims WHERE consumer = $1 AND key = $2`, consumer, key).Scan(&got)
	if err != nil {
		s.t.Errorf("%s %q: %v", consumer, key, err)
	} else if got != want {
		s.t.Errorf("%s %q is %s, want %s", consumer, key, got, want)
	}
}

// wantEvents wants a number of events of a kind for one key, or for all that begin with it
// if it ends with %.
func (s *site) wantEvents(key, kind string, want int) {
	s.t.Helper()
	if got := s.count(`SELECT count(*) FROM oncemill.events WHERE key LIKE $1 AND kind = $2`, key, kind); got != want {
		s.t.Errorf("%q has %d events %q, want %d", key, got, kind, want)
	}
}

// wantOnce wants no key to have been claimed twice.
func (s *site) wantOnce() {
	s.t.Helper()
	if n := s.count(`SELECT count(*) FROM (SELECT FROM oncemill.events WHERE kind = 'claimed' GROUP BY consumer, key HAVING count(*) > 1) AS twice`); n != 0 {
		s.t.Errorf("%d ids were claimed twice", n)
	}
}
