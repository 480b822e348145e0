// Package hostile tests what becomes of messages that nobody should send: empty, huge and
// binary ones, ids and keys and times of all sorts, headers by the thousand, rows that SQL
// writes into the outbox, requests to the guard. Each is accounted for in exactly one
// ledger, with a reason, and whatever good comes behind it goes through. The table of them,
// and of what is expected, is in testcontainers/internal/hostile. There is nothing in this
// package but tests; those on Kafka are in testcontainers/kafka.
package hostile
