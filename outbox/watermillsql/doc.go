// Package watermillsql is for programs that come from watermill-sql and Watermill's
// forwarder.
//
// [Schema] lets a watermill-sql Publisher write to Oncemill's outbox, in the transaction
// that the program gives it as before. [Drain] moves what is left in the table of a
// forwarder to the outbox. The guide docs/moving-in.md has the order of the steps.
//
// # What Drain guarantees
//
// watermill-sql never deletes a message. How far a consumer group has come is a row of
// the offsets table. A Drain locks that row, as the group's own subscriber does, writes
// the messages beyond it to the outbox and moves it on, in one transaction. So each
// message is moved exactly once, and the forwarder may go on beside it.
//
//	drain dies or loses its connection   its transaction rolls back; the next one does it again
//	a COMMIT's answer is lost            the offsets row tells the next one
//	drain freezes                        Postgres ends its transaction after 30 seconds
//	two drains, or a forwarder beside    one at a time has the row; each message has one of them
//	a message is committed late          it is moved after the transactions that began before
//	                                     its own have ended, as a subscriber would have it
//	a message is to be sent later        it goes to the table scheduled; a wait such as 24h
//	  (outbox.DeliverAfterMetadata)      counts from the move. Schema version 6
//	a message is not an envelope         Drain stops before it, or parks it (Drain.Park)
//	forwarder dies after publishing,     the message is sent once more: by the next forwarder,
//	  before it has moved the row        or by a drain. Its UUID is the same
//
// The messages table is only read. The rows of other consumer groups stay as they are.
//
// The tables are those of DefaultPostgreSQLSchema and DefaultPostgreSQLOffsetsAdapter,
// which are the same in watermill-sql v2, v3 and v4, with a payload of any type. Those of
// v1 have no transaction ids and are refused.
package watermillsql
