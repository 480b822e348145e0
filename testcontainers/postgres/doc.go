// Package postgres runs a real Postgres server as a child process, for tests,
// demonstrations and experiments: without Docker, without root, and without an
// installation if need be.
//
//	server, err := postgres.Start(ctx, postgres.Options{})
//	if err != nil { ... }
//	defer server.Close()
//	db, err := sql.Open("postgres", server.URL("postgres"))
//
// The programs are those of this machine (see Find), or else a pinned build is
// downloaded once, checked against its SHA-256 and kept (see Fetch).
//
// A server listens on 127.0.0.1 only and asks for a password, which its URL
// holds. Started by root, it runs as the user nobody, since Postgres refuses to
// run as root. It does not outlive the program that started it, even if that is
// killed with SIGKILL.
//
// To see what a program does when its database fails, a server can be killed and
// started again on the same port and the same files, and frozen:
//
//	what happens             method
//	the server crashes       Kill, later Start
//	it is restarted          Restart
//	it no longer answers     Freeze, later Thaw
//
// A Pair is a primary with a standby that takes over:
//
//	what happens                         method
//	the standby takes over               Failover, later Rebuild
//	the primary crashes and comes back   Primary().Kill, later Primary().Start
//	the standby lags                     Detach, later Attach
//
// It runs on Linux and macOS. Nothing here knows the package testing.
package postgres
