// Package oncetest is for the tests of handlers. Handle runs one in a real transaction, to
// look at what it has written; Check tells whether it is safe to have its messages delivered
// again, whatever goes wrong.
//
//	func TestBilling(t *testing.T) {
//		db := testcontainers.Postgres(t).DB // a fresh database, with Oncemill's tables
//		_, err := db.Exec(`CREATE TABLE payments (order_id text)`)
//		...
//		order := message.NewMessage("order-7", []byte("7"))
//
//		done := oncetest.Handle(t, db, bill, order) // rolled back at the end of the test
//		// done.Returned, done.Published, done.Err, and done.Tx to look at its rows
//
//		oncetest.Check(t, oncetest.Case{DB: db, Handler: bill, Message: order})
//	}
//
// # What Check does
//
// It delivers the message to the handler behind the real middleware.Once, on a real router
// and the real database, without a fault at first, and then with one fault in each run:
//
//	the process dies before and after each statement
//	Postgres refuses a statement
//	the process dies when the handler has returned
//	the process dies before its COMMIT, and after it, when its answer is lost
//	the ack is lost
//	the message is delivered twice at the same time, to one process, to two
//	in a batch, with itself, and with one that fails, so that the handler runs again
//
// That a process dies means here that all of its connections are cut, that it gets no new
// ones, and that the message is not acked. It is delivered again, to a process that has just
// started, until it is acked, and then once more. The rest of the handler's function does
// run, unless it returns the error of the statement, and its memory stays. Where a handler
// has more than 24 statements, so many of them are tried out, the first and the last included.
//
// After each run all tables of the database have to be as after the run without a fault:
// as many rows, with the same values. Columns whose values are others in each run, such as
// ids from a sequence, times and random UUIDs, are found by that and not compared. The
// outbox is one of the tables. Then the rows are brought back to what they were before.
//
// With Case.Guard it is middleware.Guard that is tried out, for handlers whose effects are
// outside of Postgres and are counted by Case.Outside. The process dies before and after the
// COMMIT of its claim, when the handler has returned, and before and after the COMMIT that
// settles the claim; then its lease is over at once. With a KeyLifetime each effect has to
// be there once in the end, without one at most once, and with it all rows or none.
//
// # What it finds
//
//	rows that are written beside the       they stay after a rollback, or are there twice
//	transaction, by a *sql.DB, or in a
//	transaction of the handler's own
//	messages published beside it           the same
//	effects outside of Postgres            twice, if Case.Outside counts them
//	a message to the broker itself         the same, with Broker in place of the publisher
//	a swallowed error                      nil, although a statement was refused
//	a goroutine that uses the transaction  it writes when the handler has returned
//	state in memory                        another effect when the handler runs again
//	a key that is not the same each time   it is asked for twice
//	nil from an aborted transaction        the run without a fault fails
//	another provider key at each attempt   Case.Outside counts two effects, under Guard
//	rows beside Claim.OnSettle, under      they stay, or are there twice
//	Guard
//
// Each is reported with the steps that show it, what was found, and what to do.
//
// Check lends the handler transactions of a pool of its own, whose connections are those of
// Case.DB. So a statement that was prepared on Case.DB, for oncemill.Tx.StmtContext, cannot
// be used, which is reported.
//
// It does not see what two messages do to each other, what depends on the broker's metadata
// of a delivery, nor an effect outside of Postgres that nobody counts.
//
// Nothing of this package belongs into a service: it imports package testing.
package oncetest
