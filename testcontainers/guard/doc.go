// Package guard tests `oncemill guard` as it is run: two processes on one real Postgres,
// which are killed, frozen, stopped and cut off from their database while callers claim,
// make effects, and settle. There is nothing in it but tests, each of which is named
// after what it proves.
//
// The effects are made at a broker in the test's process, which keeps a ledger of all
// that it has executed, and which executes an order twice if it is told to. In the end
// every test compares the ledger with the claims and the events in Postgres: see
// site.audit.
package guard
