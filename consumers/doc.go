// Package consumers puts the pieces of a consumer together.
//
// Stack adds the middlewares to a Watermill router in the order in which they
// are correct, counts a handler's errors and makes dead letters of messages that
// keep failing. Packages consumers/jetstream and consumers/kafka have the
// subscriber, the publisher and the relay's sink for NATS JetStream and for Kafka.
//
// # What becomes of a message that fails
//
//	the handler returns an error or panics     counted; delivered again, with a growing
//	                                           pause; a dead letter after MaxErrors
//	deadlock, serialization failure            run again at once, three times; not counted
//	its key is in flight elsewhere             delivered again; not counted
//	Postgres is away or read-only              delivered again; not counted; the subscriber
//	                                           fetches nothing until Postgres is back
//	the router closes                          finishes within DrainTimeout, or is delivered
//	                                           again; not counted
//	it has no key                              a dead letter at once
//	its key was used for another payload       a dead letter at once
//	it is older than the purged claims         a dead letter at once
//	it kills its process again and again       a dead letter after MaxDeliveries
//
// A dead letter is a row in the outbox and a claim settled as dead, committed in
// one transaction; only then is the message acknowledged.
package consumers
