"""What the tests of the backend need: machines, a network that loses replies, an operator.

With arguments it is a machine that is killed.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import unittest
import urllib.parse
import urllib.request

import oncemill_backend as ob

GUARDS = os.environ["GUARDS"].split()
AUDIT_TOKEN = os.environ["AUDIT_TOKEN"]
TENANT_KEYS = os.environ.get("TENANT_KEYS", "").split()
SECRET = {"api_key": TENANT_KEYS[0]} if TENANT_KEYS else {"audit_token": AUDIT_TOKEN}
SHORT = 0.1  # the shortest lease, in seconds


def machine(number, **options):
    """A backend as one machine has it, that knows one guard only."""
    return ob.OncemillBackend(GUARDS[number], **{**SECRET, **options})


def run_once(store, key, tool):
    """What a runner of tools does with the interface."""
    if not store.claim(key):
        return store.get(key)
    value = tool()
    store.set(key, value)
    return value


def resolve(request_id, verdict, **more):
    """What an operator does."""
    body = {"verdict": verdict, "note": "asked the provider", **more}
    if TENANT_KEYS:
        body["tenant"] = "ours"
    url = f"{GUARDS[0]}/resolve/{urllib.parse.quote(request_id, safe='')}"
    headers = {"X-SafeAgent-Audit-Token": AUDIT_TOKEN}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)) as reply:
        return json.load(reply)


class Ledger:
    """What the tools have done, by all processes."""

    def __init__(self, path):
        self.path = path

    def add(self, key):
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(key) + "\n")

    def count(self, key):
        with open(self.path, encoding="utf-8") as file:
            return [json.loads(line) for line in file].count(key)


class Lossy:
    """A network between a backend and a guard, which loses replies when it is told to."""

    def __init__(self, guard):
        self.guard = urllib.parse.urlsplit(guard)
        self.lose = 0  # how many replies in all
        self.lost = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                conn, _ = self.listener.accept()
            except OSError:
                return
            try:
                with conn, socket.create_connection((self.guard.hostname, self.guard.port)) as guard:
                    self.carry(conn, guard)
            except OSError:
                pass  # the backend has lost its patience

    def carry(self, conn, guard):
        threading.Thread(target=self.forward, args=(conn, guard), daemon=True).start()
        reply = b"".join(iter(lambda: guard.recv(65536), b""))
        if self.lost < self.lose:
            self.lost += 1
        else:
            conn.sendall(reply)
        conn.shutdown(socket.SHUT_RDWR)  # while the other thread reads, closing alone says nothing

    @staticmethod
    def forward(conn, guard):
        try:
            while data := conn.recv(65536):
                guard.sendall(data)
        except OSError:
            pass  # the other side is done

    def close(self):
        self.listener.close()


class Case(unittest.TestCase):
    def setUp(self):
        self.here, self.there = machine(0), machine(1)
        handle, path = tempfile.mkstemp()
        os.close(handle)
        self.addCleanup(os.remove, path)
        self.ledger = Ledger(path)

    def lossy(self, **options):
        network = Lossy(GUARDS[0])
        self.addCleanup(network.close)
        return network, ob.OncemillBackend(network.url, **{**SECRET, **options})

    def unanswered(self, key):
        """Return a backend that has claimed a key, and has had no answer."""
        network, store = self.lossy()
        network.lose, patience, store._guards._patience = sys.maxsize, store._guards._patience, 0.2
        while network.lost == 0:
            with self.assertRaises(ob.Unavailable):
                store.claim(key)
        network.lose, store._guards._patience = 0, patience
        return store

    def child(self, step, key, lease=SHORT):
        """Start a process that goes as far as a step and waits there; kill it, kill -9."""
        process = subprocess.Popen([sys.executable, __file__, step, key, str(lease), self.ledger.path],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self.assertEqual(process.stdout.readline(), step + "\n")
        finally:
            process.kill()
            process.communicate()

    def until_in_doubt(self, store, key):
        """Return the InDoubt, once the lease is over. Until then nobody may run the tool."""
        while True:
            try:
                self.assertFalse(store.claim(key))
                self.fail(f"get gave {store.get(key)!r}")
            except ob.InFlight:
                pass
            except ob.InDoubt as doubt:
                return doubt


def child(step, key, lease, path):
    """A machine that is killed."""
    store = machine(0, lease_seconds=float(lease))
    assert store.claim(key)
    if step != "claimed":
        Ledger(path).add(key)
    if step == "set":
        store.set(key, {"made": key})
    print(step, flush=True)
    sys.stdin.read()
    sys.exit("nobody has killed it")


if __name__ == "__main__":
    child(*sys.argv[1:])
