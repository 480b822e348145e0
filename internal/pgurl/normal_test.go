package pgurl_test

import (
	"net/url"
	"testing"

	"github.com/oncemill/oncemill/internal/pgurl"
	"github.com/oncemill/oncemill/internal/testenv"
)

func TestNormal(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"postgres://u:p@h1:1,h2:2/db?sslmode=disable": "postgres://u:p@/db?host=h1%2Ch2&port=1%2C2&sslmode=disable",
		"postgresql://h1,h2:2/db":                     "postgresql:///db?host=h1%2Ch2&port=5432%2C2",
		"postgres://u:p@h1:1/db":                      "postgres://u:p@h1:1/db",
		"host=h1,h2 dbname=db":                        "host=h1,h2 dbname=db",
		"":                                            "",
	} {
		if got := pgurl.Normal(address); got != want {
			t.Errorf("%s: got %s, want %s", address, got, want)
		}
	}
}

func TestSeveralHostsAreTriedInTurn(t *testing.T) {
	t.Parallel()
	u, err := url.Parse(testenv.PostgresURL(t))
	if err != nil {
		t.Fatal(err)
	}
	u.Host = "127.0.0.1:1," + u.Host // nobody listens on the first
	connector, err := pgurl.Connector(u.String() + "&target_session_attrs=read-write")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := connector.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}
