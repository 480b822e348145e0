package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// startGuard builds the command and starts `oncemill guard`, as its documentation says.
func (s *stage) startGuard(ctx context.Context) (contender, error) {
	command := filepath.Join(s.dir, "oncemill")
	build := exec.CommandContext(ctx, "go", "build", "-o", command, "github.com/oncemill/oncemill/cmd/oncemill")
	if out, err := build.CombinedOutput(); err != nil {
		return contender{}, fmt.Errorf("%s: %w\n%s", strings.Join(build.Args, " "), err, out)
	}
	addr, _, err := freePort()
	if err != nil {
		return contender{}, err
	}
	if err := s.launch(ctx, "guard", exec.Command(command, "guard", "--listen", addr, "--database-url", s.address), addr); err != nil {
		return contender{}, err
	}
	return contender{
		name:  "guard",
		dial:  func(ctx context.Context) (caller, error) { return dialHTTP(ctx, addr) },
		check: s.checkClaims,
	}, nil
}

const countSQL = `
SELECT (SELECT count(*) FROM oncemill.claims WHERE key LIKE $1 || ':%'),
	(SELECT count(*) FROM oncemill.claims WHERE key LIKE $1 || ':%' AND outcome = 'settled' AND attempts = 1),
	count(*), count(DISTINCT key) FILTER (WHERE kind = 'claimed'), count(DISTINCT key) FILTER (WHERE kind = 'settled')
FROM oncemill.events WHERE key LIKE $1 || ':%'`

// checkClaims counts what a turn has left in Postgres: a claim for each id, which was
// claimed and settled once, and one event of each.
func (s *stage) checkClaims(ctx context.Context, turn string, pairs int) error {
	var claims, settled, events, claimedKeys, settledKeys int
	if err := s.db.QueryRowContext(ctx, countSQL, turn).Scan(&claims, &settled, &events, &claimedKeys, &settledKeys); err != nil {
		return err
	}
	if claims != pairs || settled != pairs || events != 2*pairs || claimedKeys != pairs || settledKeys != pairs {
		return fmt.Errorf("%d pairs have left %d claims, of which %d are settled by their first attempt, and %d events, of %d that were claimed and %d that were settled",
			pairs, claims, settled, events, claimedKeys, settledKeys)
	}
	return nil
}
