// Package pgbouncer runs a real PgBouncer as a child process in front of a Postgres
// server, for tests of what works through a pooler.
//
//	pooler, err := pgbouncer.Start(ctx, pgbouncer.Options{Upstream: server.URL("")})
//	if err != nil { ... }
//	defer pooler.Close()
//	db, err := sql.Open("postgres", pooler.URL("app"))
//
// The program is that of this machine: see Find. It listens on 127.0.0.1 only, asks for
// the password of the server's user, and pools transactions: a session of Postgres serves
// one client for a transaction and another for the next. Started by root it runs as the
// user nobody, since PgBouncer refuses to run as root. It does not outlive the program that
// started it.
package pgbouncer
