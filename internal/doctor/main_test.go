package doctor_test

import (
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/lib/pq"
	"github.com/nats-io/nuid"
	"go.uber.org/goleak"

	"github.com/oncemill/oncemill/internal/doctor"
	"github.com/oncemill/oncemill/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func execute(t *testing.T, db *sql.DB, statements string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statements); err != nil {
		t.Fatalf("%s: %v", statements, err)
	}
}

// A database is one of a test's own, with a role of its own that may log in.
type database struct {
	t     *testing.T
	admin *sql.DB
	url   string // of the role
	role  string
}

// secret is the password of all roles.
const secret = "hunter2/%&:?"

// newDatabase makes the role first: it can only be dropped after what it owns.
func newDatabase(t *testing.T, create func(testing.TB) string) *database {
	t.Helper()
	create(t) // only where there are servers
	server := testenv.Open(t, os.Getenv(testenv.PostgresVariable))
	role := "doctor " + strings.ToLower(nuid.Next())
	execute(t, server, fmt.Sprintf(`CREATE ROLE %s LOGIN PASSWORD %s`, pq.QuoteIdentifier(role), pq.QuoteLiteral(secret)))
	t.Cleanup(func() {
		if _, err := server.Exec(`DROP ROLE ` + pq.QuoteIdentifier(role)); err != nil {
			t.Error(err)
		}
	})
	address := create(t)
	u, err := url.Parse(address)
	must(t, err)
	u.User = url.UserPassword(role, secret)
	return &database{t, testenv.Open(t, address), u.String(), role}
}

func migrated(t *testing.T) *database {
	t.Helper()
	return newDatabase(t, testenv.PostgresURL)
}

// reader is a migrated database whose role may read what the doctor does.
func reader(t *testing.T) *database {
	t.Helper()
	d := migrated(t)
	d.grant(doctor.Reader)
	d.exec(`GRANT pg_read_all_stats TO ` + pq.QuoteIdentifier(d.role))
	return d
}

func (d *database) grant(role doctor.Role) {
	d.t.Helper()
	d.exec(role.Grants(99).SQL("", pq.QuoteIdentifier(d.role)))
}

func (d *database) exec(statements string) {
	d.t.Helper()
	execute(d.t, d.admin, statements)
}

// look has the doctor look as the role. more is put behind the connection string.
func (d *database) look(more string) report {
	d.t.Helper()
	return d.lookAs(doctor.Postgres{URL: d.url + more})
}

func (d *database) lookAs(p doctor.Postgres) report {
	d.t.Helper()
	if p.URL == "" {
		p.URL = d.url
	}
	if p.Retention == 0 {
		p.Retention = week
	}
	findings, brief := p.Check(d.t.Context())
	r := report{d.t, findings, brief}
	r.wantNoSecret()
	return r
}

// A report is what the doctor has found.
type report struct {
	t     *testing.T
	all   []doctor.Finding
	brief doctor.Briefing
}

func (r report) wantNoSecret() {
	r.t.Helper()
	if text := fmt.Sprint(r.all); strings.Contains(text, "hunter2") {
		r.t.Errorf("the password is in the report: %s", text)
	}
}

// want wants a finding of a level that says all of words. Any but OK has to say what to do.
func (r report) want(level doctor.Level, check string, words ...string) {
	r.t.Helper()
	var found []string
	for _, f := range r.all {
		text := strings.Join([]string{string(f.Level), f.Check, f.Found, f.Why, f.Do}, " | ")
		if f.Check != check {
			continue
		}
		found = append(found, text)
		if f.Level == level && containsAll(text, words) && (level == doctor.OK || level == doctor.Skip || f.Do != "" && f.Why != "") {
			return
		}
	}
	if found == nil {
		r.t.Errorf("no finding about %s among %d: %v", check, len(r.all), r.all)
		return
	}
	r.t.Errorf("%s: want %s with %q, a why and what to do, got\n%s", check, level, words, strings.Join(found, "\n"))
}

func containsAll(text string, words []string) bool {
	for _, word := range words {
		if !strings.Contains(text, word) {
			return false
		}
	}
	return true
}

// wantOnly wants all to be OK but for some checks.
func (r report) wantOnly(checks ...string) {
	r.t.Helper()
	for _, f := range r.all {
		if f.Level != doctor.OK && !strings.Contains(" "+strings.Join(checks, " ")+" ", " "+f.Check+" ") {
			r.t.Errorf("%s %s: %s (%s)", f.Level, f.Check, f.Found, f.Why)
		}
	}
}
