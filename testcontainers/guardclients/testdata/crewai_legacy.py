"""What the first CrewAI backend for SafeAgent sends, on two guards with --legacy: claims by
agent, action and scope, reads of the audit by key, and settlements without a token."""

import concurrent.futures
import unittest

import requests

import guards


class Backend:
    def __init__(self, guard):
        self.base = guards.GUARDS[guard]

    def rows(self, key, status):
        reply = requests.get(f"{self.base}/audit", params={"action": key, "status": status, "limit": 1})
        reply.raise_for_status()
        return reply.json()["rows"]

    def get(self, key):
        rows = self.rows(key, "COMMITTED")
        return rows[0]["result"] if rows else None

    def set(self, key, value):
        [row] = self.rows(key, "PENDING")
        reply = requests.post(f"{self.base}/settle/{row['request_id']}", json={"result": value})
        reply.raise_for_status()

    def claim_if_absent(self, key):
        reply = requests.post(f"{self.base}/claim", json={"agent_id": "crewai-agent", "action_type": "tool_execution", "scope": key})
        reply.raise_for_status()
        return reply.json()


class CrewAI(unittest.TestCase):
    def setUp(self):
        self.here, self.there = Backend(0), Backend(1)

    def test_claim_set_get(self):
        values = [{"ok": True}, [1, "two", None], "sent", 7, 1.5, True, {}, [], ""]
        for n, value in enumerate(values):
            with self.subTest(value):
                key = f"send_payment-{{\"to\": \"a/b?c=d&é\", \"n\": {n}}}"
                self.assertIsNone(self.there.get(key))
                self.assertEqual(self.here.claim_if_absent(key)["status"], "PROCEED")
                self.assertEqual(self.there.claim_if_absent(key)["status"], "SKIP")
                self.assertIsNone(self.there.get(key))
                self.here.set(key, value)
                self.assertEqual(self.there.get(key), value)
                reply = self.there.claim_if_absent(key)
                self.assertEqual((reply["status"], reply["existing"]), ("SKIP", value))

    def test_many_claim_one_key(self):
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            replies = list(pool.map(lambda n: (self.here, self.there)[n % 2].claim_if_absent("race"), range(48)))
        self.assertEqual(sorted(r["status"] for r in replies), ["PROCEED"] + ["SKIP"] * 47)

    def test_the_audit_lists_the_newest_first(self):
        for key in ("older", "newer"):
            self.here.claim_if_absent(key)
        reply = requests.get(f"{self.here.base}/audit", params={"action": "tool_execution", "agent_id": "crewai-agent"}).json()
        self.assertEqual(reply["rows"], reply["items"])
        ids = [row["request_id"] for row in reply["rows"]]
        self.assertLess(ids.index("crewai-agent:tool_execution:newer"), ids.index("crewai-agent:tool_execution:older"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
