// Package conditions runs `oncemill relay`, as users run it, under conditions that are
// bad for long: a large backlog, a snapshot that is held, a broker that is down, loses
// its acknowledgements or is given what it does not take. It looks at what arrives, and
// at what it costs: memory, processor time, pages of the table, lines in the log.
//
// The large backlog has a million rows, or as many as ONCEMILL_TEST_BACKLOG says: with
// make test 200,000, since a million take a minute on two cores that have nothing else
// to do, and longer beside other tests.
package conditions
