// Package doctor tests what `oncemill doctor` says of servers of one's own: of those
// where nothing is wrong, of replicas, of servers with slots and prepared transactions,
// and of PgBouncer. There is nothing in it but tests.
package doctor
