"""A webhook endpoint as it was written for the first version of SafeAgent: it claims by
agent, action and scope, tests for SKIP alone, and never settles."""

import concurrent.futures
import unittest

import requests

import guards

BASE = guards.GUARDS[0]
provisioned = []


def provision(event):
    provisioned.append(event["id"])


def handle(event):
    # The payment header is of the hosted SafeAgent, and of no meaning to a guard.
    headers = {"x-payment": "none", "Content-Type": "application/json"}
    r = requests.post(f"{BASE}/claim", headers=headers, json={"agent_id": "saas-webhooks", "action_type": "stripe_event", "scope": event["id"]})
    if r.json()["status"] == "SKIP":
        return
    provision(event)


class Webhooks(unittest.TestCase):
    def deliver(self, event, base):
        global BASE
        BASE = base
        handle(event)

    def test_an_event_delivered_three_times_provisions_once(self):
        event = {"id": "evt_3times", "type": "checkout.session.completed"}
        for base in (guards.GUARDS[0], guards.GUARDS[1], guards.GUARDS[0]):
            self.deliver(event, base)
        self.assertEqual(provisioned.count("evt_3times"), 1)

    def test_an_event_delivered_at_once_provisions_once(self):
        event = {"id": "evt_at_once"}
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(handle, [event] * 48))
        self.assertEqual(provisioned.count("evt_at_once"), 1)

    def test_a_webhook_in_doubt_is_skipped(self):
        claim = {"agent_id": "saas-webhooks", "action_type": "stripe_event", "scope": "evt_doubt", "lease_seconds": 0.1}
        self.assertEqual(requests.post(f"{BASE}/claim", json=claim).json()["status"], "PROCEED")
        reply = {}
        while not reply.get("in_doubt"):
            reply = requests.post(f"{BASE}/claim", json=claim).json()
            self.assertEqual(reply["status"], "SKIP")
        handle({"id": "evt_doubt"})
        self.assertEqual(provisioned.count("evt_doubt"), 0)


class TestCalls(unittest.TestCase):
    """The flow of n8n and of "try it": POST /claim/test."""

    def test_claim_test(self):
        body = {"agent_id": "my-agent", "action_type": "send_payment", "scope": "customer:123"}
        first = requests.post(f"{BASE}/claim/test", json=body)
        self.assertEqual((first.status_code, first.json()["status"], first.json()["test"]), (200, "PROCEED", True))
        again = requests.post(f"{BASE}/claim/test", json=body).json()
        self.assertEqual((again["status"], again["test"], again["calls_remaining"]), ("PENDING", True, first.json()["calls_remaining"] - 1))
        settle = requests.post(f"{BASE}/settle/{first.json()['request_id']}", json={"result": {}},
                               headers={"X-SafeAgent-Settlement-Token": first.json()["settlement_token"]})
        self.assertEqual(settle.json()["status"], "committed")
        self.assertEqual(requests.post(f"{guards.GUARDS[1]}/claim/test", json=body).json()["status"], "SKIP")


if __name__ == "__main__":
    unittest.main(verbosity=2)
