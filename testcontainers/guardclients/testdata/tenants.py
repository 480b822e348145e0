"""The client of safeagent-exec-guard 0.1.25, unchanged, with the API keys of two tenants."""

import asyncio
import contextlib
import unittest

import httpx
from safeagent_exec_guard.payment_client import PaymentClient

import guards


class Tenants(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        asyncio.get_running_loop().set_debug(False)
        self.stack = contextlib.AsyncExitStack()
        self.addAsyncCleanup(self.stack.aclose)

    async def client(self, guard, key):
        client = PaymentClient(server_url=guards.GUARDS[guard], wallet_key=guards.WALLET_KEY, tenant_api_key=key)
        return await self.stack.enter_async_context(client)

    async def refused(self, detail, call):
        with self.assertRaises(httpx.HTTPStatusError) as caught:
            await call
        self.assertEqual((caught.exception.response.status_code, caught.exception.response.json()["detail"]), (403, detail))

    async def test_tenants_have_claims_of_their_own(self):
        ours, theirs = [await self.client(i, key) for i, key in enumerate(guards.TENANT_KEYS)]
        token = (await ours.claim("order/7", "charge"))["settlement_token"]
        other = await theirs.claim("order/7", "charge")
        self.assertEqual(other["status"], "PROCEED")
        await self.refused("settlement capability required", theirs.settle("order/7", {}, settlement_token=token))
        await ours.settle("order/7", {"charge": "ch_1"}, settlement_token=token)
        self.assertEqual((await ours.claim("order/7", "charge", settlement_token=token))["existing"], {"charge": "ch_1"})
        self.assertEqual((await theirs.claim("order/7", "charge", settlement_token=token))["status"], "PENDING")
        for key, status in zip(guards.TENANT_KEYS, ("COMMITTED", "PENDING")):
            async with httpx.AsyncClient(base_url=guards.GUARDS[0], headers={"X-SafeAgent-Api-Key": key}) as plain:
                [item] = (await plain.get("/audit")).json()["items"]
            self.assertEqual((item["request_id"], item["status"]), ("order/7", status))

    async def test_who_is_no_tenant_is_refused(self):
        for key in ("", "k" * 32, guards.TENANT_KEYS[0] + "x"):
            stranger = await self.client(0, key)
            await self.refused("tenant API key required", stranger.claim("order-8", "charge"))
            await self.refused("tenant API key required", stranger.settle("order-8", {}, settlement_token="0" * 64))

    async def test_sweep_has_no_key(self):
        # The client sends its key with claims and settlements only.
        ours = await self.client(0, guards.TENANT_KEYS[0])
        await self.refused("audit access required", ours.sweep())


if __name__ == "__main__":
    unittest.main(verbosity=2)
