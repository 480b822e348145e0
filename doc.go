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
// An effect outside of Postgres, such as an e-mail, a card charge or an order at a
// broker, is beyond any transaction. For it a claim is committed before the effect
// and ended after it, under a lease and a fencing token:
//
//	claim, err := consumer.Claim(ctx, key, oncemill.ClaimOptions{})
//	// err == nil: the claim is on disk. Make the effect, then say how it went:
//	err = claim.Settle(ctx, receipt, nil) // or Fail, Release, Doubt
//
// A process that dies in between leaves a claim that is in doubt: visible, never
// rerun blindly, and resolved by asking the provider or by a person.
//
// This package is the claims core. It needs nothing but database/sql. Package
// middleware puts it in front of Watermill handlers, package outbox sends the
// messages, and package consumers has subscribers that deliver many messages at
// a time.
//
// # The state of a key
//
// To each consumer a key is free, in flight, in doubt or settled, and the table
// claims alone tells which. With Once:
//
//	          begin, INSERT                     COMMIT
//	free  ───────────────────▶  in flight  ───────────────▶  settled
//	 ▲                              │                            │
//	 │      ROLLBACK, crash,        │                            │ Retention is over
//	 ├──────────────────────────────┘                            │ (older messages are
//	 └───────────────────────────────────────────────────────────┘  refused from then on)
//
// There a key in flight is a row that no other transaction can see yet, but that
// makes an insert of the same key wait. So the claim cannot be forgotten by a crash,
// and there is nothing to clean up after one.
//
// With Claim:
//
//	         Claim                Settle: it happened
//	free  ──────────▶  in flight ─────────────────────▶  settled
//	 ▲                 │   ▲   │  Fail: it never will     ▲
//	 │ Release: it did │   │   │                          │
//	 │ not happen      │   │   │ Doubt: nobody knows,     │
//	 ├─────────────────┘   │   │ or the lease is over     │
//	 │                     │   ▼                          │
//	 │   Claim again, in   │  in doubt ───────────────────┘
//	 │   KeyLifetime     ──┘   │   Resolve: it happened, it never will;
//	 └─────────────────────────┘   or a late Settle or Fail of the untouched claim
//	   Resolve: it did not happen
//
// There the row says it: settled_at is set, or lease_until is in the future, or
// neither, which is in doubt. Extend moves lease_until. A claim that is taken over, by
// another attempt, by a Resolver or by a person, gets another token; from then on
// whoever has the old one is refused with ErrFenced. Tokens come from one sequence, so
// that a key that was released and claimed again does not get an old one. Every change
// is a row in the table events.
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
//	a claim is on the primary,     a duplicate is acknowledged when the standby has the claim,
//	not on the standby yet         and a step of Claim is taken for done when it has that
//
// With Claim:
//
//	before the claim is on disk    no effect is begun
//	its COMMIT's answer is lost    no effect is begun; Claim tries to release it, and where it
//	                               cannot, the claim is in doubt after its lease
//	during or after the effect,    in doubt after the lease: run again with the same provider
//	before Settle                  key, asked about, or left for a person
//	Settle's answer is lost        call it again: it finds what it has done
//	process paused past the lease  its Settle is refused if somebody has taken the claim over
//	Postgres is away at Settle     call it again; in doubt after the lease
//
// # What a handler may not do
//
// A handler works in a transaction that is lent to it. It cannot commit or roll
// back, since a claim without its effects would be a lost message: see Tx. It
// should return an error for whatever it wants to be run again, and must not
// swallow an error that Postgres has aborted the transaction for: that is
// ErrTxAborted. What it does outside of the transaction, such as an HTTP
// request, may happen more than once: that is what Claim is for.
//
// # Batches
//
// With Inbox.Batch, calls of Once that wait at the same time share a transaction. Their
// functions run one after another, each in its caller's goroutine, and each sees what
// those before it have done. What Once promises stays the same:
//
//	a handler fails, panics,       all is rolled back; it runs again alone, which decides, and its key
//	or aborts the transaction      runs alone until it succeeds; the others run again without it
//	BatchTime is over              the claims of those who have not run are deleted, and the
//	                               rest is committed; they are the first of the next batch
//	the connection breaks          all fail with ErrUnavailable
//	COMMIT's answer is lost        the same; the redeliveries find out
//	a handler hangs                after IdleTimeout it fails with ErrIdle, the others run again
//	two processes' batches         one of them is rolled back and runs again; from then on they
//	get into a deadlock, or one    take turns, for 10 seconds at first, by an advisory lock
//	waits for a row for 100 ms
//	messages in order (see         they run in order, in one batch; what is behind one that
//	consumers/kafka)               failed waits for its redelivery, without running or failing
//
// One batch of an Inbox is under way at a time, and the one before may still be
// committing: several, whose handlers change the same rows, would deadlock all the time.
// Where messages are routed so that theirs do not, by topic or by partition, more than one
// Inbox in a process is more than one at a time.
//
// What changes for handlers:
//
//   - One may run more than once for a delivery, because another one has failed. What
//     it does outside of the transaction, it does again.
//   - One that waits, for an HTTP answer say, holds up all others of the process. Batches
//     are for handlers that work in Postgres.
//   - With lib/pq, what it writes by Tx.ExecContext is sent together with what others write, as
//     soon as one of them reads something, and at the end at the latest. The call returns
//     nil before that. Where the statement fails, the transaction is aborted in any case; the batch
//     is handled again with each statement sent at once, and the handler gets its
//     error. One that asks for RowsAffected runs again once, and has its statement sent at once from
//     then on. This is for queries with arguments that are run often, and makes a batch
//     cost a few round trips instead of one for each message; Inbox.SendAtOnce turns it off.
//   - now() is the begin of the batch.
//   - What lasts until the end of a transaction would reach the next handlers. SET, set_config,
//     savepoints, cursors, CREATE, and what cannot be looked at beforehand, such as Tx.Raw, are therefore
//     not done in a batch: the handler runs again alone, and so do all messages of its
//     consumer from then on, which is logged once. This cannot be seen of a setting that is
//     made inside of a function of the database: if yours sets the tenant of a row security
//     policy in that way, leave batches off, or the next message runs as that tenant.
//   - Postgres sends equal NOTIFYs of one transaction once. What is published goes to the outbox
//     at the end, behind what a handler writes there by outbox.InTx.
//   - Advisory locks that a handler takes until the end of the transaction are held until
//     the end of the batch.
//
// # Words
//
// A consumer is the name that claims belong to. A key is a message's idempotency
// key. A delivery is one arrival of a message; a duplicate is a delivery whose
// key is settled. An effect is what a handler does. A batch is several messages in one
// transaction. To settle a claim is to end
// it for good. A dead letter is a message that was given up and set aside.
//
// A lease is the time that a claim has for its effect, and a fencing token the number
// that tells its attempts apart. To release a claim is to free its key, since the
// effect did not happen; to fail it, to settle it since the effect never will. A
// claim is in doubt when its attempt is over and nobody knows whether the effect
// happened; to resolve it is to find out, with a verdict. A parked message is one that
// was acknowledged while its claim is in doubt, and is kept beside it.
package oncemill
