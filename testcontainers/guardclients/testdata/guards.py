"""What the Go test gives these scripts: two guards on one database, and secrets."""

import logging
import os
import urllib.parse

# On a busy machine asyncio complains of slowness.
logging.getLogger("asyncio").setLevel(logging.ERROR)

GUARDS = os.environ["GUARDS"].split()
AUDIT = {"X-SafeAgent-Audit-Token": os.environ.get("AUDIT_TOKEN", "")}
TENANT_KEYS = os.environ.get("TENANT_KEYS", "").split()

# PaymentClient signs payments with it. No guard asks for any.
WALLET_KEY = "11" * 32

# The clients put an id into a path as it is.
IDS = [
    "order:TQQQ:buy:6:2026-05-21T09:42:00-04:00",
    "order/2026/1",
    "order%2F2026%2F2",
    "a//b",
    "/a",
    "a/",
    "a b",
    " ",
    "Zoë 報告書 😀",
    "e\u0301",
    "100%25",
    "a+b",
    "a;b&c=d",
    "a?b=c",
    "a?b c&d=é",
    "a?b?c%3F",
    "a\\b",
    "[x]{y}|^`\"<>",
    "~._-!$'()*,@",
    "é" * 256,
]

# Of these the clients make a path that says something else. They need escaping.
GARBLED = ["100%", "50% off", "%zz", "a#b", "a/../b", "./a", "a?", "?a"]


def escaped(request_id):
    return urllib.parse.quote(request_id, safe="")
