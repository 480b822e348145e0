// Package ordered tests that the relay keeps the order of messages with the same
// ordering key, whatever happens to it. There is nothing in it but tests.
//
// Producers write some twenty thousand messages with keys, a few of which are hot,
// and others without one in between. For each key their transactions follow one
// another; those of other keys stay open meanwhile, commit late or roll back. Four
// relays publish them to a real NATS. What goes wrong is drawn by lot from a seed:
// messages fail before and after they were published, are refused and freed again by
// an operator, the broker answers late, relays are killed, stopped and frozen, and
// the servers die and come back. Producers and relays are processes of their own,
// which are the test binary itself in a role.
//
// The table sent holds what was committed, message by message, since it is written in
// the same transactions as the outbox. In the end the checker compares it with the
// stream: for each key the messages have to be there in their order, all of them, and
// no other. Each of its findings comes with what the relays have said about the
// message.
//
// That the checker can find something is tested too: on streams in which something is
// amiss, and on builds of Oncemill that have lost one of their rules each.
//
// ONCEMILL_TEST_SEED repeats the draws of a seed. The schedule of goroutines and
// processes is not among them, so it may take some runs to see a fault again.
package ordered
