// Package conditions runs `oncemill relay`, as users run it, under conditions that are
// bad for long: a large backlog, a snapshot that is held, a broker that is down, loses
// its acknowledgements or is given what it does not take, one broker of two away. It
// looks at what arrives, and at what it costs: memory, processor time, pages of the
// table, lines in the log.
package conditions
