"""Idempotent tool execution for CrewAI, with its state in oncemill guard.

A tool that pays, mails or trades has to run once for one key, whatever is retried, on
whatever machine. OncemillBackend offers the two interfaces that were proposed for CrewAI:

    get(key)  set(key, value)  claim_if_absent(key)
    get(key)  set(key, value)  claim(key)  release(key)  clear()

claim(key) is True for one caller in the world. Who gets it runs the tool, and tells the
result with set(). Everybody else gets False, and the result from get(). If the one dies
before set(), nobody knows whether the tool has run: the key is in doubt, and get() and
claim() raise InDoubt until a person has said what became of it. No answer, and no error,
is leave to run a tool, except that claim() returns True.

Only the standard library is needed, of Python 3.9 or newer. An OncemillBackend may be used
by several threads. What it raises is a BackendError; see there.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import secrets
import shlex
import ssl
import threading
import time
import urllib.parse
from typing import Any, Optional, Sequence, Union

__all__ = [
    "AccessDenied", "BackendError", "ClearRefused", "Conflict", "Failed", "InDoubt", "InFlight",
    "NotClaimed", "OncemillBackend", "Rejected", "Unavailable", "ValueNotStored",
]


class BackendError(Exception):
    """Why there is no answer. Whoever gets one must not run the tool."""


class InFlight(BackendError):
    """The tool is being run, and there is no result yet: ask again later."""


class InDoubt(BackendError):
    """Who was running the tool has not told how it went. A person, or a program that asks
    the tool's provider, has to find out and to resolve the claim: the message says how."""


class Failed(BackendError):
    """The tool did not do it, and never will: its claim was failed for good."""


class NotClaimed(BackendError):
    """set() or release() of a key that somebody else has."""


class Conflict(BackendError):
    """set() or release() came too late: the claim was resolved by somebody else. After a
    set() this means that the tool may have run twice, or that its result is another than
    they say. Tell a person."""


class ValueNotStored(BackendError):
    """The tool has run, and is settled, but its result could not be stored: it is no JSON,
    or larger than 64 KiB."""


class ClearRefused(BackendError):
    """clear() would have let tools run again."""


class AccessDenied(BackendError):
    """The guard does not accept the API key or the audit token, or there is none."""


class Rejected(BackendError):
    """The guard does not understand the request. Repeating it does not help."""


class Unavailable(BackendError):
    """No guard has answered. Whether the key is claimed is unknown; the same call may be
    made again."""


MOST_ID = 512  # bytes
MOST_RESULT = 65536  # bytes
MOST_PATIENCE = 25.0  # seconds; a guard recognises a repeated claim for 30
NONCE_KEPT = 60.0  # seconds

_NO_SENTINEL: Any = object()
_NAMESPACE = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")


class OncemillBackend:
    """The backend. Give it to CrewAI, or use it as it is.

    url           of a guard, or a list of several on one database, tried in turn
    api_key       of a tenant; a guard with --tenants needs it
    audit_token   for guards without tenants: what get() reads with
    namespace     of the keys: 1 to 100 of A-Z, a-z, 0-9, dot, underscore, dash. Processes
                  that share tools share it. A new one runs every tool again.
    agent_id      who claims, for the audit
    lease_seconds how long a tool may run before its key is in doubt, 0.1 to 2592000;
                  None: as the guard has it, 5 minutes
    hash_keys     send SHA-256s in place of keys, which hold the arguments of tools
    timeout       for one request to one guard, in seconds
    patience      for a call with all its repetitions, in seconds, at most 25
    ssl_context   for https; None: the system's certificates

    A claim belongs to the OncemillBackend that has made it: make one a process, not one a
    call.
    """

    def __init__(
        self,
        url: Union[str, Sequence[str]],
        api_key: Optional[str] = None,
        audit_token: Optional[str] = None,
        *,
        namespace: str = "crewai",
        agent_id: Optional[str] = None,
        lease_seconds: Optional[float] = None,
        hash_keys: bool = False,
        timeout: float = 5.0,
        patience: float = 20.0,
        ssl_context: Optional[ssl.SSLContext] = None,
    ) -> None:
        if not _NAMESPACE.match(namespace) or namespace in ("test", "oncemill"):
            raise ValueError(f"namespace is {namespace!r}: want 1 to 100 of A-Z, a-z, 0-9, dot, underscore and dash, but not test or oncemill")
        if not 0 < patience <= MOST_PATIENCE or timeout <= 0:
            raise ValueError(f"timeout and patience must be above 0, and patience at most {MOST_PATIENCE:g} seconds")
        for name, secret in (("api_key", api_key), ("audit_token", audit_token)):
            if secret and not re.match(r"\A[!-~]+\Z", secret):
                raise ValueError(f"{name} has characters that no key has, such as the end of a line")
        self._guards = _Guards([url] if isinstance(url, str) else list(url), timeout, patience, ssl_context)
        # An audit token reads all tenants' claims, and one's own are wanted.
        if api_key:
            self._headers = {"X-SafeAgent-Api-Key": api_key}
        else:
            self._headers = {"X-SafeAgent-Audit-Token": audit_token} if audit_token else {}
        self._namespace = namespace
        self._hash_keys = hash_keys
        self._claim_body = {"replay": True, "agent_id": agent_id, "lease_seconds": lease_seconds}
        self._lock = threading.Lock()
        self._held: dict[str, str] = {}  # settlement tokens of one's own unsettled claims, by id
        self._settled = 0  # claims of one's own
        self._unanswered: dict[str, tuple[str, float]] = {}  # nonces of claims without an answer, and since when

    def check(self) -> None:
        """Raise what would keep the backend from working. Call it at start."""
        self._guards.call("GET", "/readyz", self._headers)
        self._call("GET", "/audit?limit=1")

    # What both interfaces have.

    def get(self, key: str) -> Any:
        """Return the result of the tool, or None if the key is free: then claim() it.

        A tool may have returned None as well. claim() tells the two apart.
        Raises InFlight, InDoubt, Failed, ValueNotStored.
        """
        request_id = self.request_id(key)
        query = urllib.parse.urlencode({"action": request_id, "limit": 10})
        for item in self._call("GET", "/audit?" + query)["items"]:
            if item["request_id"] == request_id:
                return self._outcome(request_id, item)
        return None

    def set(self, key: str, value: Any) -> None:
        """Tell that the tool has run, and its result: any JSON value, tuples become lists.
        The result of a key never changes any more.

        Without a claim of one's own the key is claimed first. If somebody else has it that
        raises NotClaimed, or InDoubt or Failed; but nothing if they have told the same
        result. A value that cannot be stored raises ValueNotStored; the tool still counts
        as having run. After Unavailable, call it again: until it succeeds the key is on its
        way to be in doubt.
        """
        request_id = self.request_id(key)
        body, unstored = _encode(value)
        token = self._token(request_id)
        if token is None:
            token = self._claim_to_set(request_id, body)
            if token is None:
                return
        self._end(request_id, token, "/settle/", body)
        with self._lock:
            self._settled += 1
        if unstored:
            raise ValueNotStored(f"{request_id!r} is settled without its result: {unstored}")

    def claim(self, key: str) -> bool:
        """Claim the key. True: run the tool, then set(). False: it has run, or is being run
        elsewhere; get() tells.

        Raises InDoubt, Failed, and Unavailable: then claim it again, within 30 seconds if
        you can, for that finds a claim that was made all the same.
        """
        return self._claim(self.request_id(key))["status"] == "PROCEED"

    # What one of them has.

    def claim_if_absent(self, key: str, sentinel: Any = _NO_SENTINEL) -> Any:
        """claim(). With a sentinel the answer is a pair: (True, None), or False and the
        result, or False and the sentinel while the tool is being run elsewhere."""
        request_id = self.request_id(key)
        reply = self._claim(request_id)
        claimed = reply["status"] == "PROCEED"
        if sentinel is _NO_SENTINEL:
            return claimed
        if claimed:
            return True, None
        if reply["status"] == "PENDING":
            return False, sentinel
        if "existing" not in reply:
            raise AccessDenied(f"{request_id!r} has run, but its result needs an api_key, or the audit_token")
        return False, _decode(request_id, reply["existing"])

    def release(self, key: str) -> None:
        """Give a claim of one's own back, so that anybody may run the tool. It says that the
        tool has not done anything, and never may: an exception is no proof of that. Raises
        NotClaimed if this backend has no unsettled claim of the key."""
        request_id = self.request_id(key)
        token = self._token(request_id)
        if token is None:
            raise NotClaimed(f"release of {request_id!r}: this backend holds no unsettled claim of it")
        self._end(request_id, token, "/release/", {"reason": "released by the CrewAI backend"})

    def clear(self) -> None:
        """Forget nothing. It does nothing if this backend has claimed nothing, and else
        raises ClearRefused: what is settled would run again, and what is not settled may
        have run already. For tools that shall run again use a new namespace."""
        with self._lock:
            held, settled = len(self._held), self._settled
        if held or settled:
            raise ClearRefused(
                f"{settled} tools have run and {held} may have, and would run again: use another namespace for what is to run again, "
                "and release(key) for what certainly has not run"
            )

    def request_id(self, key: str) -> str:
        """Return the id that the guard knows a key by, as it is in the audit."""
        if not isinstance(key, str) or not key:
            raise ValueError(f"key is {key!r}: want a string that is not empty")
        plain = f"{self._namespace}:{key}"
        text = key.encode("utf-8", "surrogatepass")
        strange = re.search("[\0\ufffd\ud800-\udfff]", key) or key.startswith("sha256:")
        if self._hash_keys or strange or len(plain.encode("utf-8", "surrogatepass")) > MOST_ID:
            return f"{self._namespace}:sha256:{hashlib.sha256(text).hexdigest()}"
        return plain

    def _claim(self, request_id: str) -> dict:
        """Claim, and return the guard's answer; raise what a claim cannot be refused with
        by False."""
        with self._lock:
            # Taken out, so that two threads never repeat the same call.
            nonce, since = self._unanswered.pop(request_id, ("", 0.0))
        if not nonce or time.monotonic() - since > NONCE_KEPT:
            nonce, since = secrets.token_urlsafe(24), time.monotonic()
        # The action is the id, so that get() finds it.
        body = {**self._claim_body, "request_id": request_id, "action": request_id, "nonce": nonce}
        try:
            reply = self._call("POST", "/claim", body)
        except BaseException:
            self._keep_nonce(request_id, nonce, since)
            raise
        status = reply.get("status")
        if status == "PROCEED":
            with self._lock:
                self._held[request_id] = reply["settlement_token"]
        elif status == "PENDING" and reply.get("in_doubt"):
            raise _in_doubt(request_id, reply.get("reason"))
        elif status == "SKIP" and reply.get("failed"):
            raise _failed(request_id, reply.get("reason"))
        elif status not in ("SKIP", "PENDING"):
            raise Rejected(f"claim of {request_id!r}: unknown answer {reply!r:.200}")
        return reply

    def _keep_nonce(self, request_id: str, nonce: str, since: float) -> None:
        with self._lock:
            now = time.monotonic()
            kept = {k: v for k, v in self._unanswered.items() if now - v[1] <= NONCE_KEPT}
            self._unanswered = {**kept, request_id: (nonce, since)}

    def _claim_to_set(self, request_id: str, body: dict) -> Optional[str]:
        """Claim a key for a result, and return the settlement token; None: the result is
        there already."""
        reply = self._claim(request_id)
        if reply["status"] == "PROCEED":
            return reply["settlement_token"]
        if reply["status"] == "SKIP" and reply.get("existing") == body["result"]:
            return None
        has = "has another result, or one that cannot be read" if reply["status"] == "SKIP" else "is being run elsewhere"
        raise NotClaimed(f"set of {request_id!r}: it was not claimed by this backend, and {has}")

    def _outcome(self, request_id: str, item: dict) -> Any:
        """Return the result of a claim in the audit, or raise what it has instead."""
        if item["status"] == "COMMITTED":
            return _decode(request_id, item["result"])
        if item["status"] == "FAILED":
            raise _failed(request_id, item["reason"])
        if item["in_doubt"]:
            raise _in_doubt(request_id, item["reason"], item["tenant"])
        raise InFlight(f"{request_id!r} is being run, by {item['agent_id'] or 'another'}: ask again later, and do not run it")

    def _token(self, request_id: str) -> Optional[str]:
        with self._lock:
            return self._held.get(request_id)

    def _end(self, request_id: str, token: str, path: str, body: dict) -> None:
        try:
            self._call("POST", path + urllib.parse.quote(request_id, safe=""), body, token)
        except Conflict:
            self._let_go(request_id, token)
            raise
        self._let_go(request_id, token)

    def _let_go(self, request_id: str, token: str) -> None:
        with self._lock:
            if self._held.get(request_id) == token:
                del self._held[request_id]

    def _call(self, method: str, path: str, body: Optional[dict] = None, token: Optional[str] = None) -> dict:
        headers = {**self._headers, "X-SafeAgent-Settlement-Token": token} if token else self._headers
        status, answer = self._guards.call(method, path, headers, body)
        said = f"{method} {path}: {status} {answer.get('detail')!r}"
        if status == 200:
            return answer
        if status == 403 and path.startswith("/audit"):
            raise AccessDenied(f"{said}: give an api_key, or the audit_token to a guard without tenants")
        if status == 403:
            raise AccessDenied(said)
        if token and status in (404, 409):
            raise Conflict(f"{said}: the claim was ended by somebody else; look at its events")
        raise Rejected(said)


def _encode(value: Any) -> tuple[dict, Optional[str]]:
    """Return what to settle with, and why the value is not in it."""
    try:
        result = json.loads(json.dumps({"value": value}, allow_nan=False))
        size = len(json.dumps(result, separators=(",", ":")))
        why = f"it is JSON of {size} bytes, at most {MOST_RESULT} can be stored" if size > MOST_RESULT else None
    except (TypeError, ValueError, RecursionError) as error:
        why = f"it is no JSON: {error}"
    return ({"result": {"unstored": why[:500]}}, why) if why else ({"result": result}, None)


def _decode(request_id: str, result: Any) -> Any:
    """Undo _encode. What others have settled with is returned as it is."""
    if isinstance(result, dict) and len(result) == 1:
        if "value" in result:
            return result["value"]
        if "unstored" in result:
            raise ValueNotStored(f"{request_id!r} has run, but its result was not stored: {result['unstored']}")
    return result


def _in_doubt(request_id: str, reason: Optional[str], tenant: Optional[str] = None) -> InDoubt:
    consumer = f"guard/{tenant}" if tenant else "guard (with API keys: guard/TENANT)"
    return InDoubt(
        f"{request_id!r} is in doubt: nobody knows whether the tool has run"
        + (f" ({reason})" if reason else "")
        + f". Do not run it. Look for its effect, then resolve it: oncemill claims resolve {consumer} {shlex.quote(request_id)} "
        """--happened --result '{"value": ...}' | --not-happened | --never, with --note '...'"""
    )


def _failed(request_id: str, reason: Optional[str]) -> Failed:
    return Failed(f"{request_id!r} has failed for good: {reason or 'no reason given'}")


class _Guards:
    """Sends requests that may be repeated, until one guard answers."""

    def __init__(self, urls: list[str], timeout: float, patience: float, context: Optional[ssl.SSLContext]) -> None:
        if not urls:
            raise ValueError("url is empty: name a guard, such as http://127.0.0.1:8402")
        self._bases = [self._base(url) for url in urls]
        self._timeout, self._patience, self._context = timeout, patience, context
        self._first = 0  # the guard that has answered last

    @staticmethod
    def _base(url: str) -> urllib.parse.SplitResult:
        base = urllib.parse.urlsplit(url.rstrip("/"))
        if base.scheme not in ("http", "https") or not base.hostname or base.username or base.query or base.fragment:
            raise ValueError(f"url is {url!r}: want one such as https://guard.example:8402")
        return base

    def call(self, method: str, path: str, headers: dict, body: Optional[dict] = None) -> tuple[int, dict]:
        """Return a status below 500 other than 429, and the JSON object with it."""
        data = None if body is None else json.dumps({k: v for k, v in body.items() if v is not None}).encode()
        headers = {**headers, "Content-Type": "application/json", "Connection": "close"}
        until = time.monotonic() + self._patience
        first, pause, tried, why = self._first, 0.05, 0, ""
        while True:
            number = (first + tried) % len(self._bases)
            base, timeout = self._bases[number], min(self._timeout, max(0.05, until - time.monotonic()))
            try:
                status, answer = self._send(base, timeout, method, path, headers, data)
            except (OSError, http.client.HTTPException, ValueError) as error:
                status, why = 0, f"{base.netloc}: {error or type(error).__name__}"
            else:
                if 0 < status < 500 and status != 429:
                    self._first = number
                    return status, answer
                why = f"{base.netloc}: {status} {answer.get('detail')!r}"
            tried += 1
            if time.monotonic() + pause >= until:
                raise Unavailable(f"{method} {path}: no guard has answered in {self._patience:g} s, tried {tried} times; {why}")
            if tried % len(self._bases) == 0:
                time.sleep(pause)
                pause = min(2 * pause, 1.0)

    def _send(self, base: urllib.parse.SplitResult, timeout: float, method: str, path: str, headers: dict, data: Optional[bytes]) -> tuple[int, dict]:
        if base.scheme == "https":
            conn: http.client.HTTPConnection = http.client.HTTPSConnection(base.hostname, base.port, timeout=timeout, context=self._context)
        else:
            conn = http.client.HTTPConnection(base.hostname, base.port, timeout=timeout)
        try:
            conn.request(method, base.path + path, data, headers)
            reply = conn.getresponse()
            answer = json.loads(reply.read())
            if not isinstance(answer, dict):
                raise ValueError("the answer is no JSON object")
            return reply.status, answer
        finally:
            conn.close()
