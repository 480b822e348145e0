// Package outbox sends messages if, and only if, a database transaction commits.
//
// A handler that writes rows and publishes a message talks to two systems that
// know nothing of each other: a crash in between leaves rows without a message,
// or a message about rows that were rolled back. Here the handler publishes into
// a table of its own database, in its own transaction, and a Relay moves the
// table's rows to the broker afterwards.
//
// A [Publisher] is Watermill's message.Publisher on top of the table. A [Relay]
// drains the table into a [Sink]; jetstream.Sink is one for NATS, and
// [PublisherSink] makes one of any Watermill publisher.
//
// # What it guarantees
//
// A message is published if and only if its transaction committed. It is
// published at least once; every attempt carries the same [Row].DedupID, on
// which a broker can drop repetitions for as long as it remembers them. A
// consumer that handles the message inside oncemill's Once drops the rest, so
// that its effects happen exactly once.
//
// # Order
//
// Rows with the same ordering key, [OrderingKeyMetadata], are published one after another
// in the order of their ids, by whichever of any number of relays: a row is handed to the
// Sink once the one before it is acknowledged. While one is deferred or parked, those
// behind it wait, and no others. Ids follow commits where the transactions that write rows
// with one key follow one another, as those do that first lock the same order or account.
// A transaction that commits late delays what its keys' later rows wait for, and nothing
// else.
//
// Each key belongs to one of 64 partitions, and a relay takes rows of a partition while it
// holds its lock: an advisory lock of the transaction, so a relay that dies has none. Of a
// key that has many rows waiting a relay publishes one in each round trip to the broker.
//
// The order is that of the column: a key in the metadata of a row that SQL has written is
// sent, and gives no order. A relay that was frozen publishes what it had in hand when it
// goes on, for as long as its batch has time: messages that others have published since, in
// their order and under their dedup ids, unless an operator has given one of them a fresh
// one meanwhile.
//
// Rows without an ordering key have no order. Relays take them in the order in which they
// were inserted, but transactions commit in another, several relays work side by side and
// a deferred row is overtaken by those behind it.
//
// On a schema of version 5 rows with ordering keys are treated as the others are: a single
// relay keeps their order as long as none of them fails. A relay finds out within seconds
// that the schema has been migrated. The order holds once no relay of an older version
// runs.
//
// # What happens when something fails
//
//	transaction rolls back           the message was never there
//	process dies before the COMMIT   the same
//	process dies after the COMMIT    a relay finds the row
//	NOTIFY is lost                   the row goes out at the relay's next poll
//	relay dies before publishing     its transaction ends, another relay takes the rows
//	relay dies after publishing,     the rows are published again, under the same
//	  before its COMMIT              dedup ids: those of two batches at most
//	relay freezes                    Postgres ends its transaction after twice the
//	                                 PublishTimeout and a second; another relay takes the rows
//	database goes away               the relay waits, reconnects and goes on
//	database fails over              the same. With a synchronous standby nothing was
//	                                 published that the standby lacks
//	synchronous standby goes away    rows stay as they are; the relay tries again
//	broker goes away                 rows stay as they are, no attempt is counted; the relay
//	                                 tries again with growing pauses, at least every few seconds
//	broker refuses a message         the row is parked with the error; the others pass
//	another error for a message      the row is deferred, 1 second at first, up to 1 minute;
//	                                 the others pass
//	metadata cannot be read          the row is parked with the error; the others pass
//	a row is deferred or parked      those behind it with its ordering key wait
//
// A parked row stays in the table until somebody deals with it: with an [Admin], or the
// commands `oncemill outbox list`, retry and drop. To try it again from SQL:
//
//	UPDATE oncemill.outbox SET parked_at = NULL, not_before = NULL, attempts = 0,
//	       dedup_id = gen_random_uuid() WHERE id = ...
//
// The fresh dedup_id keeps the broker from taking it for a repetition.
//
// # What is sent later, and what is kept
//
// A message with the metadata [DeliverAfterMetadata] is sent later; [DeliverAt] and
// [DeliverIn] set it, and [Cancel] takes it back. With Relay.Keep published rows are kept
// for a while, and [Admin.Replay] has them published again if the broker has lost them.
//
// # Rows that are found late
//
// A relay goes through the table along its primary key and does not step over what
// it has deleted again, which vacuum cannot remove while any transaction has an old
// snapshot. It looks for rows behind itself (that were committed late, deferred, or
// given back by another relay) whenever it has little to do, and once a second
// otherwise; but where that takes long, as behind millions of deleted rows, only so
// often that it takes a twentieth of the time.
//
// # Publishing from SQL
//
// An INSERT from any language is a publisher: only the topic has no default. The
// columns of the table oncemill.outbox that are the writer's:
//
//	topic         text         where the message goes: a NATS subject, a Kafka topic
//	uuid          text         the Watermill message UUID; default: random
//	metadata      jsonb        headers, an object of strings; default: empty. Values of
//	                           other types are sent as their JSON text, null as "".
//	ordering_key  bytea        rows with the same one belong together and in order: the
//	                           key of a Kafka record; default: NULL, none
//	payload       bytea        the body; default: empty. NULL is a tombstone, a Kafka
//	                           record without a value; other brokers get an empty body.
//
// and those that are the relay's, which an INSERT leaves out:
//
//	id            bigint       follows the order of inserts
//	dedup_id      uuid         what the broker deduplicates on; default: random
//	created_at    timestamptz  default: the begin of the transaction
//	attempts      integer      failed attempts to publish
//	not_before    timestamptz  when it is tried again, NULL if it has not failed
//	parked_at     timestamptz  when it was given up, NULL while it was not
//	last_error    text         of the last failed attempt
//
// For example:
//
//	INSERT INTO oncemill.outbox (topic, metadata, payload)
//	VALUES ('orders.paid', '{"tenant": "acme"}', convert_to('{"order": 7}', 'UTF8'));
//
//	INSERT INTO oncemill.outbox (topic, ordering_key, payload)
//	VALUES ('orders', 'order-7', '{"state": "paid"}');
//
// A literal of type bytea stands for its own bytes as long as it has no backslash.
//
// A message that is to be sent later goes into the table oncemill.scheduled, which has
// the writer's columns of the outbox and one more without a default:
//
//	deliver_after timestamptz  when it is to be sent; if that has passed, at once
//
//	INSERT INTO oncemill.scheduled (topic, deliver_after, payload)
//	VALUES ('orders.reminder', now() + interval '3 days', '{"order": 7}');
//
// Relays look there once in a PollInterval. When it is due, one of them moves it to the
// outbox, where it gets its id and, as created_at, the time of the move. A DELETE of the
// row before cancels it, as [Cancel] does. The table is there from schema version 6 on. A
// relay whose role has no rights on it, such as one with the grants of version 5, relays
// all the same, warns with the GRANT that it lacks, and moves scheduled messages within a
// minute of being given it.
//
// Relays find such a row at their next poll. To wake them at once, execute NOTIFY
// on the channel that [Channel] names, in a statement of its own after the
// COMMIT: inside the transaction it makes all commits of the server wait for one
// another.
//
// jsonb can hold neither NUL nor what is not UTF-8. Metadata with such keys or
// values, as dead letters of foreign messages have, is kept in the member
// "oncemill:base64" of the metadata column, an object whose keys and values are
// base64; that member's name is reserved. So is "oncemill-ordering-key", whose
// value is the row's ordering key if the column ordering_key is NULL.
//
// # Vocabulary
//
// row: a message in the table. relay: what moves rows to the broker. sink: the
// broker as the relay sees it. ordering key: what rows that belong together and
// in order have in common. tombstone: a message without a payload. dedup id: the
// UUID on which the broker drops repetitions. deferred: to be tried again later.
// parked: not to be tried again by itself. scheduled: to be sent later. kept: published,
// and there to be replayed.
package outbox
