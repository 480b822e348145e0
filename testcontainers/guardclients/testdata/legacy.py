"""The client of safeagent-exec-guard 0.1.24, unchanged, on two guards with --legacy."""

import asyncio
import contextlib
import importlib.metadata
import unittest

import httpx
from safeagent_exec_guard.payment_client import PaymentClient

import guards


class Legacy(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        asyncio.get_running_loop().set_debug(False)
        stack = contextlib.AsyncExitStack()
        self.addAsyncCleanup(stack.aclose)
        self.clients = [
            await stack.enter_async_context(PaymentClient(server_url=url, wallet_key=guards.WALLET_KEY))
            for url in guards.GUARDS
        ]

    async def test_version(self):
        self.assertEqual(importlib.metadata.version("safeagent-exec-guard"), "0.1.24")

    async def test_proceed_settle_skip(self):
        reply = await self.clients[0].claim("skip", "email.send")
        self.assertEqual(reply["status"], "PROCEED")
        reply = await self.clients[1].claim("skip", "email.send")
        self.assertEqual(reply, {"status": "PENDING", "request_id": "skip", "agent_id": None})
        reply = await self.clients[1].settle("skip", {"ok": True})
        self.assertEqual(reply, {"status": "committed", "request_id": "skip"})
        reply = await self.clients[0].settle("skip", {"ok": False})
        self.assertEqual(reply, {"status": "already_committed", "request_id": "skip"})
        for client in self.clients:
            reply = await client.claim("skip", "email.send")
            self.assertEqual(reply, {"status": "SKIP", "request_id": "skip", "agent_id": None, "existing": {"ok": True}})

    async def test_settle_of_an_unknown_id(self):
        with self.assertRaises(httpx.HTTPStatusError) as caught:
            await self.clients[0].settle("unknown", {})
        self.assertEqual(caught.exception.response.status_code, 404)
        self.assertEqual(caught.exception.response.json()["detail"], "request_id not found")

    async def test_ids(self):
        for request_id in guards.IDS:
            with self.subTest(request_id):
                reply = await self.clients[0].claim(request_id, "charge")
                self.assertEqual(reply["status"], "PROCEED")
                reply = await self.clients[1].settle(request_id, {"id": request_id})
                self.assertEqual(reply, {"status": "committed", "request_id": request_id})
        for request_id in guards.IDS:
            reply = await self.clients[0].claim(request_id, "charge")
            self.assertEqual(reply["existing"], {"id": request_id})

    async def test_many_claim_one_id(self):
        replies = await asyncio.gather(*(self.clients[i % 2].claim("race", "charge") for i in range(64)))
        self.assertEqual(sorted(r["status"] for r in replies), ["PENDING"] * 63 + ["PROCEED"])

    async def test_sweep(self):
        reply = await self.clients[0].sweep()
        self.assertEqual(reply, {"swept": 0, "stale_pending": 0, "requires_reconciliation": False, "action": "none"})

    async def test_audit_is_open(self):
        await self.clients[0].claim("open", "open action")
        async with httpx.AsyncClient(base_url=guards.GUARDS[1]) as plain:
            reply = await plain.get("/audit", params={"action": "open action"})
        self.assertEqual([item["request_id"] for item in reply.json()["items"]], ["open"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
