package oncemill_test

import (
	"context"
	"strings"
	"testing"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
)

// Without the rights that every claim needs a program fails at start, and not on each of
// its messages.
func TestCheckNamesTheGrantsThatClaimsNeed(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "options of the connection string")
	url := testenv.PostgresURL(t)
	admin := testenv.Open(t, url)
	run := func(query string) {
		t.Helper()
		_, err := admin.Exec(query)
		must(t, err)
	}
	role := testenv.Role(t, admin)
	run(`GRANT USAGE ON SCHEMA oncemill TO ` + role + `; GRANT SELECT ON oncemill.schema_version TO ` + role)
	in := &oncemill.Inbox{DB: testenv.OpenAs(t, url, role)}

	for _, step := range []struct{ lacks, grant string }{
		{`(GRANT SELECT, INSERT ON oncemill.claims TO "ROLE"; GRANT SELECT ON oncemill.watermarks TO "ROLE")`, `SELECT ON oncemill.claims`},
		{`(GRANT INSERT ON oncemill.claims TO "ROLE"; GRANT SELECT ON oncemill.watermarks TO "ROLE")`, `INSERT ON oncemill.claims`},
		{`(GRANT SELECT ON oncemill.watermarks TO "ROLE")`, `SELECT ON oncemill.watermarks`},
	} {
		wantText(t, in.Check(within(t)), `role "`+role+`" may not claim keys `+strings.ReplaceAll(step.lacks, "ROLE", role))
		run(`GRANT ` + step.grant + ` TO ` + role)
	}
	must(t, in.Check(within(t)))
	none := func(context.Context, oncemill.Tx) error { return nil }
	must(t, in.Consumer("test").Once(within(t), "k", none))

	// Of the columns that it uses is enough.
	run(`REVOKE SELECT, INSERT ON oncemill.claims FROM ` + role + `;
		GRANT SELECT (consumer, key, outcome, fingerprint), INSERT (consumer, key, outcome, fingerprint) ON oncemill.claims TO ` + role)
	must(t, in.Check(within(t)))
	must(t, in.Consumer("test").Once(within(t), "l", none))
}
