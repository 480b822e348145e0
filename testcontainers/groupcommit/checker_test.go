package groupcommit_test

import (
	"strings"
	"testing"
)

// amiss is what may be amiss about the message $1, and what the checker says of it.
var amiss = []struct{ statement, want string }{
	{`DELETE FROM oncemill.claims WHERE key = $1`, "it was acknowledged and has no claim"},
	{`DELETE FROM oncemill.claims WHERE key = $1`, "its effect has no claim"},
	{`UPDATE oncemill.claims SET outcome = 'dead' WHERE key = $1`, "its claim is dead"},
	{`INSERT INTO oncemill.claims (consumer, key) SELECT consumer, 'x' FROM oncemill.claims WHERE key = $1`, "there was no such message"},
	{`DELETE FROM effects WHERE key = $1`, "its claim has no effect"},
	{`INSERT INTO effects SELECT * FROM effects WHERE key = $1`, "it has 2 effects"},
	{`UPDATE effects SET tenant = 'x' WHERE key = $1`, "under another's setting"},
	{`UPDATE effects SET run = 2 WHERE key = $1`, "is in the outbox 0 times"},
	{`UPDATE effects SET run = 2 WHERE key = $1`, "which is not in effect"},
	{`UPDATE effects SET messages = messages + 1 WHERE key = $1`, "is in the outbox 0 times"},
	{`UPDATE effects SET messages = messages - 1 WHERE key = $1`, "which is not in effect"},
	{`DELETE FROM oncemill.outbox WHERE metadata->>'key' = $1`, "is in the outbox 0 times"},
	{`INSERT INTO oncemill.outbox (topic, metadata) SELECT topic, metadata FROM oncemill.outbox WHERE metadata->>'key' = $1`, "is in the outbox 2 times"},
	{`UPDATE hot SET n = n + 1 WHERE id = 3 AND $1 <> ''`, "counter 3 is at 1, and 0 effects have raised it"},
	{`UPDATE effects SET hot = '{3}' WHERE key = $1`, "counter 3 is at 0, and 1 effects have raised it"},
}

// The checker finds what is amiss in the tables.
func TestTheCheckerFindsWhatIsAmiss(t *testing.T) {
	t.Parallel()
	s := newSite(t, 0, 40)
	r := s.worker(0)
	r.All, r.Calm, r.Failpoints = true, true, false
	s.finish(s.start(r))
	s.balance()
	key := keyOf(s.seed, 7)
	for _, test := range amiss {
		tx, err := s.db.Begin()
		must(t, err)
		result, err := tx.Exec(test.statement, key)
		must(t, err)
		if n, _ := result.RowsAffected(); n == 0 {
			t.Errorf("%s: no row", test.statement)
		}
		found := s.audit(tx)
		must(t, tx.Rollback())
		var all []string
		for _, a := range found {
			all = append(all, s.describe(a))
		}
		text := strings.Join(all, "\n")
		if !strings.Contains(text, test.want) {
			t.Errorf("%s: the checker finds %q, not %q", test.statement, text, test.want)
		}
		if found != nil && found[0].key == key && !strings.Contains(text, "acked") {
			t.Errorf("%s: the checker does not tell what happened to the message: %q", test.statement, text)
		}
	}
}
