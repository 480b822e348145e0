package oncemill_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
)

// A program is warned when it starts, and not again by later checks, and is not kept from
// starting.
func TestSynchronousCommitOffIsWarnedOfAtStart(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "settings of the connection string")
	for name, test := range map[string]struct{ parameter, set, remedy string }{
		"connection string": {"&synchronous_commit=off", "", "take synchronous_commit out of the connection string"},
		"database":          {"", "ALTER DATABASE %s SET synchronous_commit = off", "SET synchronous_commit = on"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := testenv.PostgresURL(t)
			var database string
			admin := testenv.Open(t, url)
			must(t, admin.QueryRow(`SELECT current_database()`).Scan(&database))
			if test.set != "" {
				_, err := admin.Exec(fmt.Sprintf(test.set, pq.QuoteIdentifier(database)))
				must(t, err)
			}
			var log testenv.Log
			for range 2 { // two Inboxes, as of two routers
				in := &oncemill.Inbox{DB: testenv.Open(t, url+test.parameter), Logger: log.Logger()}
				must(t, in.Check(t.Context()))
				must(t, in.Check(t.Context()))
			}
			if n := log.Count(`msg="oncemill: synchronous_commit is off`); n != 1 {
				t.Errorf("%d warnings:\n%s", n, log.String())
			}
			for _, words := range []string{"level=WARN", "check=durability", "After a crash of the server, messages are lost that were acknowledged", test.remedy} {
				if log.Count(words) == 0 {
					t.Errorf("no %q in\n%s", words, log.String())
				}
			}
		})
	}
}

func TestNothingIsWarnedOfWhereSynchronousCommitIsOn(t *testing.T) {
	t.Parallel()
	var log testenv.Log
	in := &oncemill.Inbox{DB: testenv.DB(t), Logger: log.Logger()}
	must(t, in.Check(t.Context()))
	if strings.Contains(log.String(), "synchronous") {
		t.Error(log.String())
	}
}
