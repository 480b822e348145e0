package main_test

import (
	"testing"

	"github.com/oncemill/oncemill/internal/testenv"
)

// Of what can be lost with Postgres the relay warns when it starts, and of what can be lost
// with a stream when it first publishes to it.
func TestRelayWarnsOfWhatCanBeLost(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "settings of the connection string")
	s := start(t)
	s.dbURL += "&synchronous_commit=off"
	r := s.relay(t)
	poll(t, func() bool { return r.log.Count(`msg="oncemill: synchronous_commit is off`) == 1 })
	s.publish(t, 1)
	poll(t, func() bool {
		return s.inOutbox(t) == 0 && r.log.Count(`msg="oncemill: stream \"`+s.subject+`\" is in memory, with one replica"`) == 1
	})
}

func TestGuardWarnsOfWhatCanBeLost(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "settings of the connection string")
	g := startGuard(t, testenv.PostgresURL(t)+"&synchronous_commit=off")
	if g.log.Count(`msg="oncemill: synchronous_commit is off`) != 1 || g.log.Count("Claims of Guard are safe") != 1 {
		t.Errorf("want one warning in\n%s", g.log)
	}
}
