package guardclients_test

import (
	"fmt"
	"path/filepath"
	"testing"
)

// backendTests are those of the backend for CrewAI.
const backendTests = root + "/examples/crewai/test_oncemill_backend.py"

func TestTheCrewAIBackendRunsToolsOnce(t *testing.T) {
	t.Parallel()
	python := python(t, "3, 9")
	s := newSite(t)
	s.run(python, backendTests)
	s.wantBackendClaims("guard")
}

func TestTheCrewAIBackendRunsToolsOnceWithAPIKeys(t *testing.T) {
	t.Parallel()
	python := python(t, "3, 9")
	file := filepath.Join(t.TempDir(), "tenants.json")
	ours := command(t, "guard", "tenants", "add", "ours", "--tenants", file)
	theirs := command(t, "guard", "tenants", "add", "theirs", "--tenants", file)
	s := newSite(t, "--tenants", file)
	s.run(python, backendTests, "TENANT_KEYS="+ours+" "+theirs)
	s.wantBackendClaims("guard/ours")
	s.wantClaim("guard/theirs", "crewai:tenant", `settled {"value":"theirs"}`)
}

// wantBackendClaims wants in Postgres what the backend's tests leave there.
func (s *site) wantBackendClaims(consumer string) {
	s.t.Helper()
	for key, want := range map[string]string{
		"crewai:result":                     `settled {"value":{"charge":"ch_1"}}`,
		"crewai:released":                   `settled {"value":1}`,
		"crewai:unclaimed":                  `settled {"value":[1]}`,
		"crewai:late":                       `settled {"value":"after all"}`,
		"crewai:never":                      `failed`,
		"crewai:in flight":                  `unsettled`,
		"crewai:killed when claimed, don't": `unsettled`,
		"crewai:killed when made, don't":    `unsettled`,
		"crewai:not happened":               `settled {"value":1}`,
		"crewai:failover":                   `settled {"value":1}`,
	} {
		s.wantClaim(consumer, key, want)
	}
	for n := range 5 {
		key := fmt.Sprint("crewai:race ", n)
		s.wantEvents(key, "claimed", 1)
		s.wantEvents(key, "blocked", 31)
	}
	s.wantEvents("crewai:reply lost", "claimed", 1)
	s.wantEvents("crewai:reply lost", "repeated", 1)
	const twice = `SELECT count(*) FROM (SELECT FROM oncemill.events GROUP BY consumer, key
		HAVING count(*) FILTER (WHERE kind = 'claimed') > 1 + count(*) FILTER (WHERE kind = 'released')) AS twice`
	if n := s.count(twice); n != 0 {
		s.t.Errorf("%d tools could run twice without a release between", n)
	}
}
