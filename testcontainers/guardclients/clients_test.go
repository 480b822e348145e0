package guardclients_test

import (
	"fmt"
	"path/filepath"
	"testing"
)

// settledWithTheirIDs counts the claims that are settled with their own id as the result,
// as the programs settle those of strange ids.
const settledWithTheirIDs = `SELECT count(*) FROM oncemill.claims
	WHERE outcome = 'settled' AND convert_from(result, 'UTF8')::jsonb ->> 'id' = key`

// How many ids of each kind testdata/guards.py has.
const (
	strangeIDs = 20
	garbledIDs = 8
)

func TestTheClientOfGenerationCRunsUnchanged(t *testing.T) {
	t.Parallel()
	c := safeagent(t)
	s := newSite(t)
	s.run(c.python, "testdata/current.py")

	s.wantClaim("guard", "already", `settled {"n":1}`)
	s.wantClaim("guard", "token", `settled {"by":"its own"}`)
	s.wantClaim("guard", "another token", `unsettled`)
	s.wantClaim("guard", "pending", `unsettled`)
	s.wantClaim("guard", "stale", `settled {"late":true}`)
	s.wantEvents("pending", "blocked", 4)
	s.wantEvents("skip", "blocked", 6)
	for n := range 10 {
		key := fmt.Sprint("race ", n)
		s.wantClaim("guard", key, fmt.Sprintf(`settled {"n":%d}`, n))
		s.wantEvents(key, "claimed", 1)
		s.wantEvents(key, "settled", 1)
		s.wantEvents(key, "blocked", 63+16)
	}
	if n := s.count(settledWithTheirIDs); n != strangeIDs+garbledIDs {
		t.Errorf("%d strange ids are settled, want %d", n, strangeIDs+garbledIDs)
	}
	s.wantOnce()
}

func TestTheClientOfGenerationBRunsUnchangedOnLegacyGuards(t *testing.T) {
	t.Parallel()
	c := safeagent(t)
	s := newSite(t, "--legacy")
	s.run(c.python, "testdata/legacy.py", "PYTHONPATH="+c.older)

	s.wantClaim("guard", "skip", `settled {"ok":true}`)
	s.wantClaim("guard", "race", `unsettled`)
	s.wantEvents("race", "blocked", 63)
	if n := s.count(settledWithTheirIDs); n != strangeIDs {
		t.Errorf("%d strange ids are settled, want %d", n, strangeIDs)
	}
	s.wantOnce()
}

func TestTheClientRunsUnchangedWithAPIKeys(t *testing.T) {
	t.Parallel()
	c := safeagent(t)
	file := filepath.Join(t.TempDir(), "tenants.json")
	ours := command(t, "guard", "tenants", "add", "ours", "--tenants", file)
	theirs := command(t, "guard", "tenants", "add", "theirs", "--tenants", file)
	s := newSite(t, "--tenants", file)
	s.run(c.python, "testdata/tenants.py", "TENANT_KEYS="+ours+" "+theirs)

	s.wantClaim("guard/ours", "order/7", `settled {"charge":"ch_1"}`)
	s.wantClaim("guard/theirs", "order/7", `unsettled`)
	if n := s.count(`SELECT count(*) FROM oncemill.claims`); n != 2 {
		t.Errorf("%d claims, want 2: strangers have claimed", n)
	}
}

func TestTheMCPServerRunsUnchanged(t *testing.T) {
	t.Parallel()
	c := safeagent(t)
	s := newSite(t)
	s.run(c.python, "testdata/mcp_tools.py")

	if n := s.count(`SELECT count(*) FROM oncemill.claims WHERE consumer = 'guard' AND key LIKE 'test:%' AND action = 'send_payment'
		AND agent = 'assistant' AND scope = 'customer:123' AND convert_from(result, 'UTF8') = '{"paid":12}'`); n != 1 {
		t.Errorf("%d claims of the tool are settled, want 1", n)
	}
	s.wantOnce()
}

func TestAWebhookDeliveredThreeTimesProvisionsOnce(t *testing.T) {
	t.Parallel()
	c := safeagent(t)
	s := newSite(t)
	s.run(c.python, "testdata/webhooks.py")

	for key, blocked := range map[string]int{
		"saas-webhooks:stripe_event:evt_3times":  2,
		"saas-webhooks:stripe_event:evt_at_once": 47,
	} {
		s.wantClaim("guard", key, "unsettled")
		s.wantEvents(key, "claimed", 1)
		s.wantEvents(key, "blocked", blocked)
	}
	s.wantEvents("saas-webhooks:stripe_event:evt_doubt", "claimed", 1)
	s.wantOnce()
}

func TestTheFirstCrewAIBackendWorksOnLegacyGuards(t *testing.T) {
	t.Parallel()
	c := safeagent(t)
	s := newSite(t, "--legacy")
	s.run(c.python, "testdata/crewai_legacy.py")

	const settled = `SELECT count(*) FROM oncemill.claims WHERE consumer = 'guard' AND outcome = 'settled'
		AND agent = 'crewai-agent' AND action = 'tool_execution' AND key = 'crewai-agent:tool_execution:' || scope`
	if n := s.count(settled); n != 9 {
		t.Errorf("%d tools are settled, want 9", n)
	}
	s.wantEvents("crewai-agent:tool_execution:race", "blocked", 47)
	s.wantOnce()
}
