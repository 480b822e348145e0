// Package movein runs what docs/moving-in.md says, on a real Postgres and a real NATS:
// its Go code is in this folder's files, and its SQL and its commands are read from the
// page.
package movein
