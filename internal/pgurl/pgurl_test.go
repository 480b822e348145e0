package pgurl_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/oncemill/oncemill/internal/pgurl"
)

func TestConnector(t *testing.T) {
	t.Parallel()
	for _, good := range []string{
		"postgres://user:pass%2Fword@host:5432/db?sslmode=disable",
		"host=localhost user=x password='a b'",
	} {
		if _, err := pgurl.Connector(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{
		"postgres://user:secret@host:port/db",
		"postgres://user:secret/word@host/db",
		"postgres://user:secret%zz@host/db",
		"host=localhost password=top secret",
		"mysql://user:secret@host/db",
		"postgres://user:secret@host/db?sslmode=sometimes",
		"secret",
	} {
		_, err := pgurl.Connector(bad)
		if !errors.Is(err, pgurl.ErrSyntax) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: error is %v", bad, err)
		}
	}
}
