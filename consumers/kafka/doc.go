// Package kafka connects Watermill to Apache Kafka: a Subscriber that keeps the
// order of each partition, a Publisher, and a Sink with which an outbox.Relay
// publishes. It is built on franz-go.
//
//	client, err := kgo.NewClient(kgo.SeedBrokers("127.0.0.1:9092"))
//	...
//	subscriber := &kafka.Subscriber{Client: client, Group: "billing"}
//	router.AddConsumerHandler("billing", "orders", subscriber, handle)
//
// The topic must exist, or be created by Subscriber.CreateTopic. TLS, SASL and
// whatever else leads to the brokers are options of the client.
//
// # What is guaranteed
//
// Every message of the topic is delivered until it is acknowledged. An offset is
// committed only when all messages before it in the partition are finished. A
// message may be delivered more than once, but not without a cause: see below. To
// make its effects happen once, use package consumers or middleware.
//
//	what happens                      what becomes of the messages
//	a handler is slow                 nothing: being a member of the group does not hang on it
//	a handler nacks                   delivered again after NakDelay; those behind it wait
//	the process is killed             another member gets its partitions after the session
//	                                  timeout (kgo.SessionTimeout, 45 seconds), and with them
//	                                  what was not committed
//	the process is frozen, or its     the same; when it goes on, its messages' contexts end,
//	  machine suspended               nothing more is committed in its name, and it joins again
//	a partition goes to another       handlers are waited for, 3 seconds at most; what is
//	  member                          finished is committed, the contexts of the rest end
//	Close, or the context ends        handlers are waited for (DrainTimeout), what is finished
//	                                  is committed, others get the partitions at once (those of
//	                                  a static member after its session timeout)
//	a member is killed, and another   nothing can be committed while the group waits for the
//	  one soon after                  dead one's session to run out, so all that the other has
//	                                  finished meanwhile is delivered again, too
//	what handlers need is away        nothing is handed out until it is back
//	brokers away                      the client tries again for as long as it is set to (seconds,
//	                                  if connections are refused), and then takes its partitions
//	                                  for lost: contexts end, handlers inside Once go on, and
//	                                  what is not committed is delivered again
//	the topic is deleted, made anew   noticed; read from its beginning, and its messages are
//	                                  not mistaken for old ones (Kafka 4.2 and later; before,
//	                                  stop the group while you do that). CreateTopic, if it is
//	                                  set, makes it anew
//	a partition loses its last        read again from where it was cut off, or where the brokers
//	  records (unclean election)      cannot tell, from a minute before (kgo.ConsumeResetOffset)
//	a transaction is aborted          its messages are not delivered (kgo.ReadCommitted)
//
// A member that is replaced within its session, as in a deployment, does not stop
// the group if it is a static one: set kgo.InstanceID to a name that the process
// keeps, such as its host's. Shorter sessions (kgo.SessionTimeout) make up for a
// death sooner; with them set kgo.HeartbeatInterval to a third or less.
//
// # Order
//
// Messages of a partition are handled in the order of the partition, one at a
// time. Other partitions go on meanwhile. With MaxInFlight above 1, messages of a
// partition are handled at the same time if they have different record keys, and
// the order is that of each key; records without key have none.
//
// With Ahead above 1, several messages of a partition or key are handed out at a
// time, and Once keeps their order, if its Inbox has a Batch above 1. It handles
// those that wait in one transaction, one after another, so that a few partitions
// are enough for large transactions:
//
//	inbox := &oncemill.Inbox{DB: db, Batch: 64}
//	subscriber := &kafka.Subscriber{Client: client, Group: "billing", Ahead: 128}
//	err := consumers.Stack{Once: middleware.Once{Inbox: inbox}}.Apply(ctx, router)
//
// What is behind a message that fails, and out already, waits inside of Once until
// that one has succeeded or is a dead letter; it is neither retried nor counted
// meanwhile. If it is nacked itself, as when the database is away, it comes again
// after what is before it. A router without Once, or without a Batch, is noticed
// with its first message: then there is one at a time, as without Ahead, and an
// error in the log. MaxInFlight stays what it is, the number of messages of a
// partition that may be handled at the same time:
//
//	MaxInFlight  Ahead    of a partition
//	0 or 1       0 or 1   one message is handed out, in the order of the partition
//	0 or 1       128      128 are, and take effect in the order of the partition
//	8            0 or 1   those of 8 keys are, one of each
//	8            16       those of 8 keys are, 16 of each, and take effect in the
//	                      order of the key; at most 8 records without key
//
// When a partition goes to another member, or the Subscriber is closed, what has
// begun may come to its end, as without Ahead. What waits for its turn is given back
// at once, and the next owner gets it.
//
// A message that keeps failing holds up what is behind it: that is what order
// means. consumers.Stack makes a dead letter of it after MaxErrors. Of a process
// that is killed by a message, Kafka does not tell; Stack.MaxDeliveries has no
// effect here.
//
// # Back-pressure
//
// A partition that holds 4,000 messages or 4 MiB is not fetched from until it has
// got rid of half of them. So a partition that stands still does not keep the
// others from being read, and memory is bounded by the number of partitions: each
// may hold one fetch more than that, and the client has its buffers for each broker.
//
// # Messages and records
//
//	message                           record
//	UUID                              header _watermill_message_uuid, as with watermill-kafka
//	Metadata                          headers, in the order of their names
//	Metadata, name#2, name#3          further values of the header name
//	Metadata oncemill-ordering-key    key
//	Payload, nil                      value, null: a tombstone
//
// A record from a producer that knows nothing of Watermill has no UUID; then
// claim by another thing: middleware.ByPosition, middleware.ByMetadata for a
// header, or ByRecordKey. A header whose value is null arrives as an empty one;
// FromContext has the headers as they came.
//
// Keys choose partitions as the Java client does, by murmur2. Sarama, and with
// it watermill-kafka, chooses otherwise: a topic in which order matters should
// have producers of one kind.
package kafka
