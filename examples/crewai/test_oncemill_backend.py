"""Tests of the backend, on two guards that work on one database.

go test ./guardclients, in the module testcontainers, starts the guards and runs this. It
needs: GUARDS, two URLs; AUDIT_TOKEN; and with tenants TENANT_KEYS, two API keys, of which
the first is of the tenant "ours".
"""

import socket
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor

import oncemill_backend as ob
from site_for_tests import GUARDS, SECRET, SHORT, TENANT_KEYS, Case, machine, resolve, run_once


class BothInterfaces(Case):
    def test_every_value_comes_back(self):
        values = [None, True, 0, -1.5, 12345678901234567890, "", "Zoë 報告書 😀", "half \ud83d", "\0", [], {}, [1, [None]],
                  {"value": 1}, {"unstored": "x"}, {"existing": {"deep": [{}]}}, "x" * 65000]
        for n, value in enumerate(values):
            with self.subTest(value=ascii(value)[:40]):
                key = f"value {n}"
                self.assertIsNone(self.there.get(key))
                self.assertIs(self.here.claim(key), True)
                self.here.set(key, value)
                self.assertEqual(self.there.get(key), value)
                self.assertEqual(self.here.get(key), value)
                self.assertIs(self.there.claim(key), False)

    def test_every_key_is_a_key_of_its_own(self):
        keys = ["pay-{\"to\": \"a/b?c=d&é#%\"}", "a/b", "a%2Fb", "a", "a ", "A", "😀", "x" * 600, "x" * 601, "\0", "\ud800", "\ufffd", "test:a", "oncemill:a"]
        keys.append("sha256:" + self.here.request_id("\0").rpartition(":")[2])  # what another key is hashed to
        for key in keys:
            self.assertTrue(self.here.claim(key), ascii(key))
        for key in keys:
            self.here.set(key, ascii(key))
        for key in keys:
            self.assertEqual(self.there.get(key), ascii(key))
        hashed = machine(0, hash_keys=True)
        self.assertNotIn("secret", hashed.request_id("secret"))
        self.assertTrue(hashed.claim("secret"))

    def test_namespaces_are_apart(self):
        other = machine(0, namespace="other.run-2")
        self.assertTrue(self.here.claim("namespaced"))
        self.assertTrue(other.claim("namespaced"))
        self.assertFalse(machine(1, namespace="other.run-2").claim("namespaced"))

    def test_claim_if_absent(self):
        self.assertIs(self.here.claim_if_absent("if absent"), True)
        self.assertIs(self.there.claim_if_absent("if absent"), False)
        sentinel = object()
        self.assertEqual(self.there.claim_if_absent("if absent", sentinel), (False, sentinel))
        self.here.set("if absent", {"paid": 12})
        self.assertEqual(self.there.claim_if_absent("if absent", sentinel), (False, {"paid": 12}))
        self.assertEqual(self.here.claim_if_absent("another", sentinel), (True, None))

    def test_release(self):
        self.assertTrue(self.here.claim("released"))
        with self.assertRaises(ob.NotClaimed):
            self.there.release("released")
        self.here.release("released")
        self.assertIsNone(self.there.get("released"))
        with self.assertRaises(ob.NotClaimed):
            self.here.release("released")
        self.assertTrue(self.there.claim("released"))
        self.there.set("released", 1)
        with self.assertRaises(ob.NotClaimed):
            self.there.release("released")

    def test_clear_forgets_nothing(self):
        self.here.clear()
        self.assertTrue(self.here.claim("cleared"))
        with self.assertRaises(ob.ClearRefused):
            self.here.clear()
        self.assertFalse(self.there.claim("cleared"))
        self.here.set("cleared", "done")
        with self.assertRaises(ob.ClearRefused):
            self.here.clear()
        self.assertEqual(self.there.get("cleared"), "done")
        self.there.clear()
        self.assertFalse(self.there.claim("cleared"))
        self.assertTrue(self.there.claim("not run"))
        self.there.release("not run")
        self.there.clear()

    def test_set_without_a_claim(self):
        self.here.set("unclaimed", [1])
        self.assertEqual(self.there.get("unclaimed"), [1])
        self.there.set("unclaimed", [1])
        with self.assertRaises(ob.NotClaimed):
            self.there.set("unclaimed", [2])
        self.assertTrue(self.here.claim("another's"))
        with self.assertRaises(ob.NotClaimed):
            self.there.set("another's", 1)
        self.here.set("another's", 2)
        self.assertEqual(self.there.get("another's"), 2)

    def test_a_result_never_changes(self):
        self.here.set("first", 1)
        with self.assertRaises(ob.NotClaimed):
            self.here.set("first", 2)
        self.assertEqual(self.there.get("first"), 1)

    def test_a_value_that_cannot_be_stored_is_not_run_again(self):
        for name, value in (("object", object()), ("nan", float("nan")), ("large", "x" * 70000), ("set", {1})):
            with self.subTest(name):
                self.assertTrue(self.here.claim(name))
                with self.assertRaises(ob.ValueNotStored):
                    self.here.set(name, value)
                self.assertFalse(self.there.claim(name))
                with self.assertRaises(ob.ValueNotStored):
                    self.there.get(name)


class Machines(Case):
    def test_many_threads_on_two_machines_run_a_tool_once(self):
        for n in range(5):
            key = f"race {n}"
            with ThreadPoolExecutor(16) as pool:
                claims = list(pool.map(lambda i: (self.here, self.there)[i % 2].claim(key), range(32)))
            self.assertEqual(claims.count(True), 1)

    def test_who_does_not_run_the_tool_gets_its_result(self):
        def tool():
            self.ledger.add("result")
            return {"charge": "ch_1"}

        for store in (self.here, self.there, self.there, self.here):
            self.assertEqual(run_once(store, "result", tool), {"charge": "ch_1"})
        self.assertEqual(self.ledger.count("result"), 1)

    def test_a_tool_that_is_being_run_has_no_result_yet(self):
        self.assertTrue(self.here.claim("in flight"))
        for store in (self.here, self.there):
            self.assertFalse(store.claim("in flight"))
            with self.assertRaises(ob.InFlight):
                store.get("in flight")

    def test_another_guard_takes_over(self):
        with socket.create_server(("127.0.0.1", 0)) as closed:
            dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
        store = ob.OncemillBackend([dead, GUARDS[1]], **SECRET)
        store.check()
        self.assertTrue(store.claim("failover"))
        store.set("failover", 1)
        self.assertEqual(self.here.get("failover"), 1)

    def test_no_guard_is_no_leave_to_run(self):
        with socket.create_server(("127.0.0.1", 0)) as closed:
            dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
        store = ob.OncemillBackend(dead, **SECRET, patience=0.2)
        for call in (store.claim, store.claim_if_absent, store.get, lambda key: store.set(key, 1), lambda _: store.check()):
            with self.assertRaises(ob.Unavailable):
                call("nobody there")


class Crashes(Case):
    def test_killed_between_claim_and_set_is_in_doubt_and_never_run_again(self):
        for step, ran in (("claimed", 0), ("made", 1)):
            with self.subTest(step):
                key = f"killed when {step}, don't"
                self.child(step, key)
                doubt = self.until_in_doubt(self.there, key)
                self.assertIn("oncemill claims resolve guard", str(doubt))
                self.assertIn("--not-happened", str(doubt))
                for store in (self.here, self.there):
                    for call in (store.claim, store.claim_if_absent, store.get, lambda key: store.set(key, 1),
                                 lambda key: run_once(store, key, lambda: self.ledger.add(key))):
                        with self.assertRaises(ob.InDoubt):
                            call(key)
                self.assertEqual(self.ledger.count(key), ran)

    def test_killed_while_others_wait(self):
        self.child("made", "waited for", lease=300)
        self.assertFalse(self.there.claim("waited for"))
        with self.assertRaises(ob.InFlight):
            self.there.get("waited for")

    def test_killed_after_set_has_run(self):
        self.child("set", "finished")
        self.assertEqual(run_once(self.there, "finished", self.fail), {"made": "finished"})

    def test_it_happened(self):
        for result, value in (({"value": {"made": 1}}, {"made": 1}), ({"charge": "ch_2"}, {"charge": "ch_2"}), (None, None)):
            key = f"happened {value}"
            self.child("made", key)
            self.until_in_doubt(self.there, key)
            resolve(self.there.request_id(key), "happened", **({"result": result} if result else {}))
            self.assertEqual(run_once(self.there, key, self.fail), value)

    def test_it_did_not_happen(self):
        self.child("claimed", "not happened")
        self.until_in_doubt(self.there, "not happened")
        resolve(self.there.request_id("not happened"), "not happened")
        self.assertIsNone(self.there.get("not happened"))
        self.assertEqual(run_once(self.there, "not happened", lambda: 1), 1)

    def test_it_never_will(self):
        self.child("claimed", "never")
        self.until_in_doubt(self.there, "never")
        resolve(self.there.request_id("never"), "never")
        for call in (self.here.get, self.here.claim, lambda key: self.here.set(key, 1)):
            with self.assertRaises(ob.Failed) as caught:
                call("never")
            self.assertIn("asked the provider", str(caught.exception))

    def test_a_late_set_is_taken(self):
        late = machine(0, lease_seconds=SHORT)
        self.assertTrue(late.claim("late"))
        self.until_in_doubt(self.there, "late")
        late.set("late", "after all")
        self.assertEqual(self.there.get("late"), "after all")

    def test_a_set_after_somebody_has_resolved_the_claim_is_told(self):
        for verdict in ("happened", "not happened", "never"):
            late = machine(0, lease_seconds=SHORT)
            key = f"too late: {verdict}"
            self.assertTrue(late.claim(key))
            self.until_in_doubt(self.there, key)
            resolve(late.request_id(key), verdict)
            if verdict == "not happened":
                self.assertTrue(self.there.claim(key))
            with self.assertRaises(ob.Conflict):
                late.set(key, 1)
            with self.assertRaises(ob.NotClaimed):
                late.release(key)


class LostReplies(Case):
    def test_a_claim_whose_reply_is_lost_is_still_ours(self):
        network, store = self.lossy()
        network.lose = 1
        self.assertTrue(store.claim("reply lost"))
        self.assertEqual(network.lost, 1)
        self.assertFalse(self.there.claim("reply lost"))
        network.lose = 2
        store.set("reply lost", 1)
        self.assertEqual(network.lost, 2)
        self.assertEqual(self.there.get("reply lost"), 1)

    def test_a_claim_is_recovered_by_the_next_call(self):
        store = self.unanswered("recovered")
        self.assertFalse(self.there.claim("recovered"))
        self.assertTrue(store.claim("recovered"))
        self.assertFalse(store.claim("recovered"))

    def test_a_claim_is_recovered_by_one_thread_only(self):
        store = self.unanswered("recovered once")
        together = threading.Barrier(8)

        def claim(_):
            together.wait()
            return store.claim("recovered once")

        with ThreadPoolExecutor(8) as pool:
            self.assertEqual(list(pool.map(claim, range(8))).count(True), 1)

    def test_a_release_whose_reply_is_lost(self):
        network, store = self.lossy()
        self.assertTrue(store.claim("release lost"))
        network.lose = 1
        store.release("release lost")
        self.assertEqual(network.lost, 1)
        self.assertTrue(self.there.claim("release lost"))


class Access(Case):
    def test_reading_takes_a_key(self):
        blind = ob.OncemillBackend(GUARDS[0])
        for call in (blind.check, lambda: blind.get("blind")):
            with self.assertRaises(ob.AccessDenied) as caught:
                call()
            self.assertIn("api_key", str(caught.exception))
        self.here.check()
        if TENANT_KEYS:
            with self.assertRaises(ob.AccessDenied):
                blind.claim("blind")
            return
        self.assertTrue(blind.claim("blind"))
        blind.set("blind", 1)
        self.assertIs(blind.claim_if_absent("blind"), False)
        with self.assertRaises(ob.AccessDenied):
            blind.claim_if_absent("blind", None)

    def test_a_wrong_key_is_refused(self):
        for secret in ({"api_key": "k" * 40}, {"audit_token": "t" * 40}):
            with self.assertRaises(ob.AccessDenied):
                ob.OncemillBackend(GUARDS[0], **secret).check()

    @unittest.skipUnless(TENANT_KEYS, "the guards have no tenants")
    def test_tenants_do_not_see_one_another(self):
        theirs = ob.OncemillBackend(GUARDS[1], TENANT_KEYS[1])
        self.here.set("tenant", "ours")
        self.assertIsNone(theirs.get("tenant"))
        self.assertTrue(theirs.claim("tenant"))
        theirs.set("tenant", "theirs")
        self.assertEqual(self.there.get("tenant"), "ours")
        self.child("claimed", "whose")
        self.assertIn("guard/ours", str(self.until_in_doubt_by_get("whose")))

    def until_in_doubt_by_get(self, key):
        while True:
            try:
                self.fail(self.there.get(key))
            except ob.InFlight:
                pass
            except ob.InDoubt as doubt:
                return doubt

    def test_wrong_settings_are_refused_at_once(self):
        for wrong in ({"url": []}, {"url": "127.0.0.1:8402"}, {"url": "http://u@h"}, {"namespace": "test"}, {"namespace": "a:b"},
                      {"patience": 30}, {"timeout": 0}, {"api_key": "two\nlines"}):
            with self.subTest(**wrong), self.assertRaises(ValueError):
                ob.OncemillBackend(**{"url": GUARDS[0], **wrong})
        for key in ("", None, 7):
            with self.assertRaises(ValueError):
                self.here.claim(key)


if __name__ == "__main__":
    unittest.main()
