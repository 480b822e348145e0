"""The MCP server of safeagent-exec-guard 0.1.25 behind a real MCP client, over stdio.

Nothing of it is changed but the constant that names its server. With the argument
"serve" this file is that server.
"""

import asyncio
import json
import sys
import unittest

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import get_default_environment, stdio_client

import guards


def serve(url):
    from safeagent_exec_guard import mcp_server

    mcp_server.SAFEAGENT_BASE_URL = url
    asyncio.run(mcp_server.main())


class MCP(unittest.IsolatedAsyncioTestCase):
    async def call(self, session, tool, **arguments):
        result = await session.call_tool(tool, arguments)
        self.assertFalse(result.isError, result)
        return json.loads(result.content[0].text)

    async def test_claim_and_settle(self):
        environment = {**get_default_environment(), "GUARDS": " ".join(guards.GUARDS), "NO_PROXY": "127.0.0.1", "PYTHONDONTWRITEBYTECODE": "1"}
        server = StdioServerParameters(command=sys.executable, args=[__file__, "serve", guards.GUARDS[0]], env=environment)
        async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
            await session.initialize()
            await self.claim_and_settle(session)

    async def claim_and_settle(self, session):
        arguments = {"request_id": "customer:123", "action": "send_payment", "agent_id": "assistant"}
        first = await self.call(session, "safeagent_claim", **arguments)
        self.assertEqual((first["status"], first["test"], first["calls_remaining"]), ("PROCEED", True, 999))
        self.assertRegex(first["request_id"], r"\Atest:[0-9a-f]{64}\Z")
        again = await self.call(session, "safeagent_claim", **arguments)
        self.assertEqual((again["status"], again["request_id"], again["calls_remaining"]), ("PENDING", first["request_id"], 998))
        settled = await self.call(session, "safeagent_settle", request_id=first["request_id"], result={"paid": 12}, settlement_token=first["settlement_token"])
        self.assertEqual(settled, {"status": "committed", "request_id": first["request_id"]})
        other = await self.call(session, "safeagent_claim", **{**arguments, "request_id": "customer:124"})
        self.assertEqual(other["status"], "PROCEED")
        skipped = await self.call(session, "safeagent_claim", **arguments)
        self.assertEqual((skipped["status"], skipped["request_id"]), ("SKIP", first["request_id"]))
        refused = await session.call_tool("safeagent_settle", {"request_id": other["request_id"], "result": {}, "settlement_token": first["settlement_token"]})
        self.assertTrue(refused.isError)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2])
    else:
        unittest.main(verbosity=2)
