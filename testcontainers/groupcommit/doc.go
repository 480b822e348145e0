// Package groupcommit tests that messages which share a transaction, by
// oncemill.Inbox.Batch, have their effects once each, whatever happens to their
// neighbours. There is nothing in it but tests.
//
// Two processes, which are the test binary itself in a role, handle the same few
// thousand messages on one Postgres, each message one to three times, through
// Watermill's router and middleware.Once. What goes wrong is drawn by lot from a
// seed: handlers fail, panic, hang and swallow errors, contexts end, hot rows
// deadlock, connections break at each statement of the protocol, processes die and
// freeze. The source delivers again what is not acknowledged, as a broker does.
//
// Handlers write to a table without a unique constraint, so that an effect that
// happens twice is there twice, and no relay runs, so that the outbox keeps all that
// was ever sent. In the end the checker compares messages, claims, effects, outbox
// rows, counters and acknowledgements, message by message. Each of its findings comes
// with what the processes have said about that message.
//
// That the checker can find something is tested too: on tables in which something is
// amiss, and on builds of Oncemill that have lost one of their rules each.
//
// ONCEMILL_TEST_SEED repeats the draws of a seed. The schedule of goroutines and
// processes is not among them, so it may take some runs to see a fault again.
package groupcommit
