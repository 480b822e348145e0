// Package jetstream connects Watermill to NATS JetStream: a Subscriber with many
// messages in flight, a Publisher, and a Sink with which an outbox.Relay
// publishes.
//
//	nc, err := nats.Connect(url, nats.MaxReconnects(-1))
//	...
//	subscriber := &jetstream.Subscriber{Conn: nc, Group: "billing"}
//	router.AddConsumerHandler("billing", "orders.created", subscriber, handle)
//
// A topic is a NATS subject. A stream that captures it must exist, or be created
// by Subscriber.CreateStream.
//
// # What is guaranteed
//
// Every message of the topic is delivered until it is acknowledged: the consumer
// on the server has MaxDeliver -1, and one that has a limit is refused, because
// a message that fails too often would be stuck. A message may be delivered more
// than once, but not without a cause: see below. To make its effects happen
// once, use package consumers or middleware.
//
//	what happens                      what becomes of the messages
//	a handler is slow                 nothing: the process says that it is alive
//	a handler nacks                   delivered again after NakDelay
//	the process is killed             delivered again after AckWait
//	the process is frozen             delivered again after AckWait, also to others
//	Close, or the context ends        those not handled yet are given back at once,
//	                                  those being handled are waited for (DrainTimeout)
//	what handlers need is away        fetching stops until it is back
//	connection breaks, broker away    handlers go on; their acknowledgements are sent when
//	                                  it is back; messages under way come after AckWait
//	an acknowledgement is lost        repeated; if that fails, delivered again
//	the broker was killed             it may forget acknowledgements of its last seconds
//	                                  and deliver those messages again
//	the consumer is deleted           made anew; a group gets the whole stream again, a
//	                                  Subscribe without a group goes on where it was
//	the stream is deleted, made anew  noticed; its messages are not mistaken for old ones
//	a header cannot be decoded        the message is delivered without headers
//
// # In flight
//
// A Subscribe has MaxInFlight slots. A slot is reserved by a request to the
// server, then occupied by the message that arrives, and free when the server
// has confirmed that the message is acknowledged or it has been nacked. So the
// process never holds more messages than that, and asks for no more than it has
// room for.
//
// From its arrival until then each message is kept from being delivered again by
// a sign of life every third of AckWait, or of the consumer's shortest BackOff
// if it has one: in the handler, and also while it waits for one. AckWait is
// therefore not a limit on handlers. It is the time after which the messages of
// a process that has crashed are delivered to others.
//
// The server bounds the messages that are unacknowledged over all members of a
// group, including those that wait for their NakDelay, by MaxAckPending. It is
// set to 1000 or 8 × MaxInFlight, whichever is more. If so many messages keep
// failing, the group stops at them instead of going through the whole stream.
//
// # Order
//
// With MaxInFlight 1 messages are handled in the order of the stream, one at a
// time in the whole group: MaxAckPending is 1 too, and a message that is nacked
// holds up the others. Otherwise they arrive in order, except for those delivered
// again, and are handled at the same time.
//
// # Headers
//
// All headers become metadata. A header with several values has the first under
// its name and the others under name#2, name#3 and so on (leaving out names that
// are taken), and Publisher and Sink make one header of them again. Values lose
// blanks at their ends. FromContext has the headers as they came.
//
// A message's UUID is in the header UUIDHeader, as with watermill-nats. Messages
// without it get their Nats-Msg-Id as the UUID, and without that too an empty
// one: then key claims by another thing, such as middleware.ByPosition.
//
// Headers that begin with "Nats-" are for the server. They are received but not
// sent, unless ServerHeaders says so.
package jetstream
