package doctor_test

import (
	"testing"
	"time"

	"github.com/oncemill/oncemill/internal/doctor"
	"github.com/oncemill/oncemill/testcontainers"
)

// A server that takes connections and says nothing, from the beginning or in the middle,
// is a finding.
func TestAServerThatIsSilentDoesNotHoldUpTheDoctor(t *testing.T) {
	t.Parallel()
	server := start(t, testcontainers.PostgresOptions{Volatile: true})
	database := testcontainers.DatabaseOn(t, server)
	address := asRole(t, database, "reader", doctor.Reader)
	must(t, database.DB.Close())
	begun := time.Now()
	freeze := func() time.Time {
		must(t, server.Freeze())
		return time.Now()
	}
	found := look(t, doctor.Postgres{URL: address, Clock: freeze})
	want(t, found, doctor.OK, "version")
	want(t, found, doctor.Skip, "the rest", "were not made")
	found = look(t, doctor.Postgres{URL: address})
	want(t, found, doctor.Fail, "connection", "cannot be reached", "check the address")
	if took := time.Since(begun); took > patience {
		t.Errorf("it took %v", took)
	}
	must(t, server.Thaw())
	want(t, look(t, doctor.Postgres{URL: address}), doctor.OK, "connection")
}
