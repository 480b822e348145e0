"""Tells schemathesis what a description cannot say.

It is asked for requests that are as described only: those that are meant to be wrong
stay as they are.
"""

import base64
import os
import re
import uuid

import requests
import schemathesis

CURSOR = base64.urlsafe_b64encode(b"1779370800000000 5").decode().rstrip("=")
TENANT = os.environ.get("GUARD_TENANT", "")
MOST = {"request_id": 512, "action": 512, "agent_id": 512, "action_type": 512, "scope": 512, "fingerprint": 256, "currency": 16, "reason": 2048, "note": 2048}
ENDS = re.compile(r"/(settle|release|fail|extend)/\{request_id\}")


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    known_query(case)
    known_body(case)
    if ENDS.fullmatch(case.path):
        claim(case)


def known_query(case):
    """A cursor comes from a list, and a tenant has to be there."""
    query = case.query
    if not query:
        return
    if "cursor" in query:
        query["cursor"] = CURSOR
        query.pop("offset", None)
    if "tenant" in query:
        query["tenant"] = TENANT


def known_body(case):
    """A number has at most 20 digits behind the point, and texts are measured in bytes."""
    body = case.body
    if not isinstance(body, dict):
        return
    if isinstance(body.get("amount"), float):
        body["amount"] = round(body["amount"], 2)
    if body.get("tenant") is not None:
        body["tenant"] = TENANT
    for name, most in MOST.items():
        if isinstance(body.get(name), str) and len(body[name].encode()) > most:
            body[name] = body[name][: most // 4]
    triple = [body.get(name) for name in ("agent_id", "action_type", "scope")]
    if all(isinstance(text, str) for text in triple) and len(":".join(triple).encode()) > 512:
        for name in ("agent_id", "action_type", "scope"):
            body[name] = body[name][:40]


def claim(case):
    """Who ends a claim has made it. Its id is any, or with something behind it if it is taken."""
    url = case.operation.schema.get_base_url().rstrip("/") + "/claim"
    headers = {}
    if "GUARD_KEY" in os.environ:
        headers["X-SafeAgent-Api-Key"] = os.environ["GUARD_KEY"]
    for behind in ("", "/" + uuid.uuid4().hex):
        request_id = case.path_parameters["request_id"][:100] + behind
        answer = requests.post(url, json={"request_id": request_id, "action": "end"}, headers=headers)
        if answer.status_code == 200 and answer.json()["status"] == "PROCEED":
            case.path_parameters["request_id"] = request_id
            case.headers["X-SafeAgent-Settlement-Token"] = answer.json()["settlement_token"]
            return
