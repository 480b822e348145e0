// Package oncemill makes the effects of a message happen exactly once, on
// brokers that deliver it at least once.
//
// # The idea
//
// A broker delivers a message again after a crash, a lost acknowledgement or a
// rebalance. A handler whose effects are rows in Postgres becomes immune to that
// if one transaction holds three things: a claim of the message's idempotency
// key, the handler's own writes, and the messages that the handler sends. They
// commit together or not at all. A redelivery then finds the claim, and is
// acknowledged without running.
//
//	err := consumer.Once(ctx, key, func(ctx context.Context, tx oncemill.Tx) error {
//		_, err := tx.ExecContext(ctx, `INSERT INTO payments ...`)
//		return err
//	})
//	// err == nil: committed, now or earlier. Acknowledge the message.
//
// This package is the claims core. It needs nothing but database/sql. Package
// middleware puts it in front of Watermill handlers, package outbox sends the
// messages, and package consumers has subscribers that deliver many messages at
// a time.
//
// # The state of a key
//
// To each consumer a key is in one of three states, and the table claims alone
// tells which:
//
//	          begin, INSERT                     COMMIT
//	free  ───────────────────▶  in flight  ───────────────▶  settled
//	 ▲                              │                            │
//	 │      ROLLBACK, crash,        │                            │ Retention is over
//	 ├──────────────────────────────┘                            │ (older messages are
//	 └───────────────────────────────────────────────────────────┘  refused from then on)
//
// A key in flight is a row that no other transaction can see yet, but that makes
// an insert of the same key wait. So the claim cannot be forgotten by a crash,
// and there is nothing to clean up after one.
//
// # When something fails
//
//	before COMMIT is sent          the transaction rolls back, the redelivery runs
//	COMMIT sent, answer lost       an error; the redelivery finds the claim, or runs
//	after COMMIT, before the ack   the redelivery is a duplicate and does not run
//	process frozen in a handler    Postgres ends the transaction after IdleTimeout
//	same key twice at a time       the second waits for LockWait, then ErrInFlight
//	Postgres restarts              errors with ErrUnavailable; nothing is committed by halves
//	Postgres fails over            the same, if replication is synchronous; an asynchronous
//	                               standby may lack claims and effects that were committed
//
// # What a handler may not do
//
// A handler works in a transaction that is lent to it. It cannot commit or roll
// back, since a claim without its effects would be a lost message: see Tx. It
// should return an error for whatever it wants to be run again, and must not
// swallow an error that Postgres has aborted the transaction for: that is
// ErrTxAborted. What it does outside of the transaction, such as an HTTP
// request, may happen more than once.
//
// # Words
//
// A consumer is the name that claims belong to. A key is a message's idempotency
// key. A delivery is one arrival of a message; a duplicate is a delivery whose
// key is settled. An effect is what a handler does. To settle a claim is to end
// it for good. A dead letter is a message that was given up and set aside.
package oncemill
