// Package faults tests what Oncemill promises about crashes: on a real Postgres
// and a real NATS, with workers and relays that are processes of their own and
// that are killed, frozen and cut off. There is nothing in it but tests, each of
// which is named after what it proves.
//
// The test binary runs itself again as a worker or a relay: see role. Such a
// process does to itself what cannot be timed from outside, such as dying after
// its COMMIT and before its acknowledgement; servers are killed by the test. A
// process tells on its standard output what it does, and tests wait for that,
// for a row in Postgres or for the broker's own figures, never for a time.
//
// The tables that handlers write to have no unique constraint, so that an effect
// that happens twice is there twice. In the end every test compares them with
// the claims, and asks the broker whether anything is left: see site.balance.
package faults
