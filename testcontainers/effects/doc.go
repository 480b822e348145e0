// Package effects tests what Oncemill promises about effects outside of Postgres: on a
// real Postgres and a real NATS, with workers and resolvers that are processes of their
// own and that are killed, frozen and cut off at every step of an effect. There is
// nothing in it but tests, each of which is named after what it proves.
//
// The effects are made at a provider, an HTTP server in the test's process that keeps a
// ledger of all that it has executed. It honours idempotency keys, or can be asked, or
// neither, and loses replies, hangs, is slow and goes away as it is told. Nothing in it
// keeps an effect from happening twice unless keys do.
//
// In the end every test explains each message by the ledger, the claims, the events and
// the parked messages: see site.audit. It was settled and executed once; it failed and
// was never executed; or it is in doubt and listed, with its message. Whatever else there
// is fails the test.
//
// The test binary runs itself again as a worker: see role, and package faults, which
// does the same for effects in Postgres.
package effects
