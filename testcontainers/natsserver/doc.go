// Package natsserver runs a real NATS server with JetStream, for tests and
// demonstrations, without Docker and without an installation: it is the very
// code of nats-server, taken from its Go module.
//
// Embed runs one inside the calling process, ready in 30 ms. Start runs one as a
// child process, which can be killed, started again on the same port and the
// same streams, and frozen, to see what a program does when its broker fails:
//
//	what happens             method
//	the server crashes       Kill, later Start
//	it is restarted          Restart
//	it no longer answers     Freeze, later Thaw
//	it crashes now and then  KillCommand while KeepRunning runs
//
// StartCluster starts several that replicate streams to each other, and tells which
// of them leads a stream, and when one that was killed is back in.
//
// Servers listen on 127.0.0.1 only. A child process does not outlive the program
// that started it, even if that is killed with SIGKILL.
//
// It runs on Linux and macOS. Nothing here knows the package testing.
package natsserver
