"""The client of safeagent-exec-guard 0.1.25, unchanged, on two guards."""

import asyncio
import contextlib
import importlib.metadata
import re
import unittest

import httpx
from safeagent_exec_guard.payment_client import PaymentClient

import guards


class Current(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        asyncio.get_running_loop().set_debug(False)
        stack = contextlib.AsyncExitStack()
        self.addAsyncCleanup(stack.aclose)
        self.clients = [
            await stack.enter_async_context(PaymentClient(server_url=url, wallet_key=guards.WALLET_KEY))
            for url in guards.GUARDS
        ]
        self.plain = await stack.enter_async_context(httpx.AsyncClient(base_url=guards.GUARDS[0]))

    async def test_version(self):
        self.assertEqual(importlib.metadata.version("safeagent-exec-guard"), "0.1.25")

    async def claimed(self, request_id, action="charge"):
        """Claim an id that is free, and return the settlement token."""
        reply = await self.clients[0].claim(request_id, action)
        self.assertEqual(reply["status"], "PROCEED", reply)
        self.assertEqual(reply["request_id"], request_id)
        self.assertIsNone(reply["agent_id"])
        self.assertRegex(reply["settlement_token"], re.compile(r"\A[0-9a-f]{64}\Z"))
        return reply["settlement_token"]

    async def refused(self, status, detail, call):
        """Want a call to be refused by the guard."""
        with self.assertRaises(httpx.HTTPStatusError) as caught:
            await call
        self.assertEqual(caught.exception.response.status_code, status)
        self.assertEqual(caught.exception.response.json()["detail"], detail)

    async def test_proceed_settle_skip(self):
        result = {"ok": True, "sent_to": "user@example.com", "parts": [1, 2.5, None, "é"], "big": 12345678901234567890}
        token = await self.claimed("skip", "email.send")
        reply = await self.clients[1].settle("skip", result, settlement_token=token)
        self.assertEqual(reply, {"status": "committed", "request_id": "skip"})
        for client in self.clients:
            reply = await client.claim("skip", "email.send", settlement_token=token)
            self.assertEqual(reply, {"status": "SKIP", "request_id": "skip", "agent_id": None, "existing": result})
            reply = await client.claim("skip", "email.send")
            self.assertEqual(reply, {"status": "SKIP", "request_id": "skip", "agent_id": None})
            reply = await client.claim("skip", "email.send", settlement_token="0" * 64)
            self.assertEqual(reply, {"status": "SKIP", "request_id": "skip", "agent_id": None})

    async def test_pending(self):
        token = await self.claimed("pending")
        for client in self.clients:
            for with_token in (None, token):
                reply = await client.claim("pending", "charge", settlement_token=with_token)
                self.assertEqual(reply, {"status": "PENDING", "request_id": "pending", "agent_id": None})

    async def test_wrong_and_missing_token(self):
        denied = (403, "settlement capability required")
        token = await self.claimed("token")
        another = await self.claimed("another token")
        last = "0" if token[-1] != "0" else "1"
        for wrong in ("0" * 64, another, token[:-1] + last, token[:-1], token + "0", "x"):
            await self.refused(*denied, self.clients[1].settle("token", {}, settlement_token=wrong))
        with self.assertRaises(ValueError):  # the client does not even ask
            await self.clients[0].settle("token", {}, settlement_token="")
        reply = await self.plain.post("/settle/token", json={"result": {}})
        self.assertEqual((reply.status_code, reply.json()["detail"]), denied)
        reply = await self.clients[0].claim("token", "charge")
        self.assertEqual(reply["status"], "PENDING")
        reply = await self.clients[0].settle("token", {"by": "its own"}, settlement_token=token)
        self.assertEqual(reply["status"], "committed")

    async def test_already_committed(self):
        token = await self.claimed("already")
        reply = await self.clients[0].settle("already", {"n": 1}, settlement_token=token)
        self.assertEqual(reply["status"], "committed")
        for client, result in zip(self.clients, ({"n": 1}, {"n": 2})):
            reply = await client.settle("already", result, settlement_token=token)
            self.assertEqual(reply, {"status": "already_committed", "request_id": "already"})
        reply = await self.clients[0].claim("already", "charge", settlement_token=token)
        self.assertEqual(reply["existing"], {"n": 1})

    async def test_ids(self):
        for request_id in guards.IDS:
            with self.subTest(request_id):
                token = await self.claimed(request_id)
                reply = await self.clients[1].settle(request_id, {"id": request_id}, settlement_token=token)
                self.assertEqual(reply, {"status": "committed", "request_id": request_id})
        for request_id in guards.IDS:  # no settlement went to another's claim
            reply = await self.plain.post("/claim", json={"request_id": request_id, "action": "charge", "replay": True}, headers=guards.AUDIT)
            self.assertEqual(reply.json()["existing"], {"id": request_id})

    async def test_the_token_tells_an_id_from_its_escaped_form(self):
        ids = ("a/b", "a%2Fb", "a%252Fb")
        tokens = [await self.claimed(request_id) for request_id in ids]
        for request_id, token in zip(ids, tokens):
            reply = await self.clients[1].settle(request_id, {}, settlement_token=token)
            self.assertEqual(reply, {"status": "committed", "request_id": request_id})

    async def test_ids_that_the_client_garbles(self):
        for request_id in guards.GARBLED:
            with self.subTest(request_id):
                token = await self.claimed(request_id)
                try:
                    await self.clients[1].settle(request_id, {"id": request_id}, settlement_token=token)
                except httpx.HTTPError:  # it is not lost: whoever escapes it settles it
                    reply = await self.plain.post(f"/settle/{guards.escaped(request_id)}", json={"result": {"id": request_id}}, headers={"X-SafeAgent-Settlement-Token": token})
                    self.assertEqual(reply.json(), {"status": "committed", "request_id": request_id})
                reply = await self.clients[0].claim(request_id, "charge", settlement_token=token)
                self.assertEqual(reply["existing"], {"id": request_id})

    async def test_invalid(self):
        for request_id in ("", "test:a", "oncemill:a", "x" * 513, "nul\0"):
            with self.subTest(request_id[:20]), self.assertRaises(httpx.HTTPStatusError) as caught:
                await self.clients[0].claim(request_id, "charge")
            self.assertEqual(caught.exception.response.status_code, 422)
        token = await self.claimed("invalid")
        with self.assertRaises(httpx.HTTPStatusError) as caught:
            await self.clients[0].settle("invalid", ["no object"], settlement_token=token)
        self.assertEqual(caught.exception.response.status_code, 422)
        self.assertEqual(caught.exception.response.json()["detail"][0]["loc"], ["body", "result"])

    async def test_sweep(self):
        calm = {"swept": 0, "stale_pending": 0, "requires_reconciliation": False, "action": "none"}
        self.assertEqual(await self.clients[0].sweep(), calm)
        reply = await self.plain.post("/claim", json={"request_id": "stale", "action": "charge", "lease_seconds": 0.1})
        token = reply.json()["settlement_token"]
        while (await self.clients[1].sweep())["stale_pending"] == 0:
            pass
        stale = {**calm, "stale_pending": 1, "requires_reconciliation": True}
        self.assertEqual(await self.clients[0].sweep(), stale)
        reply = await self.clients[0].claim("stale", "charge")
        self.assertEqual((reply["status"], reply["in_doubt"]), ("PENDING", True))
        await self.clients[0].settle("stale", {"late": True}, settlement_token=token)
        self.assertEqual(await self.clients[0].sweep(), calm)

    async def test_many_claim_one_id(self):
        for n in range(10):
            request_id = f"race {n}"
            replies = await asyncio.gather(*(self.clients[i % 2].claim(request_id, "charge") for i in range(64)))
            self.assertEqual(sorted(r["status"] for r in replies), ["PENDING"] * 63 + ["PROCEED"])
            [token] = [r["settlement_token"] for r in replies if r["status"] == "PROCEED"]
            await self.clients[n % 2].settle(request_id, {"n": n}, settlement_token=token)
            replies = await asyncio.gather(*(self.clients[i % 2].claim(request_id, "charge") for i in range(16)))
            self.assertEqual({r["status"] for r in replies}, {"SKIP"})

    async def test_audit(self):
        await self.claimed("audited", "audited action")
        reply = await self.plain.get("/audit")
        self.assertEqual((reply.status_code, reply.json()["detail"]), (403, "audit access required"))
        reply = await self.plain.get("/audit", params={"action": "audited action", "status": "PENDING"}, headers=guards.AUDIT)
        listed = reply.json()
        self.assertEqual((listed["total"], listed["limit"], listed["offset"]), (1, 100, 0))
        [item] = listed["items"]
        self.assertEqual((item["request_id"], item["status"], item["result"], item["committed_at"]), ("audited", "PENDING", None, None))
        self.assertIsInstance(item["claimed_at"], float)


if __name__ == "__main__":
    unittest.main(verbosity=2)
