package servers_test

import (
	"database/sql"
	"testing"

	_ "github.com/lib/pq"

	"github.com/oncemill/oncemill/testcontainers/internal/servers"
)

func TestWithoutDockerTheServerIsAProcess(t *testing.T) {
	t.Setenv(servers.DockerVariable, "0")
	address, stop, err := servers.Postgres(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("postgres", address)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.PingContext(t.Context()); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if err := db.PingContext(t.Context()); err == nil {
		t.Error("the server is still there")
	}
}

func TestDockerWithoutAnEngineIsAnError(t *testing.T) {
	if servers.EngineAnswers(t.Context()) {
		t.Skip("needs a machine without a Docker engine")
	}
	t.Setenv(servers.DockerVariable, "1")
	if _, _, err := servers.Postgres(t.Context()); err == nil {
		t.Error("it started without an engine")
	} else {
		t.Log(err)
	}
}

func TestAContainerServesWhereAnEngineAnswers(t *testing.T) {
	if !servers.EngineAnswers(t.Context()) {
		t.Skip("needs a Docker engine")
	}
	t.Setenv(servers.DockerVariable, "1")
	address, stop, err := servers.Postgres(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	db, err := sql.Open("postgres", address)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.PingContext(t.Context()); err != nil {
		t.Error(err)
	}
}
