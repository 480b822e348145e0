// Package kafkaserver runs a real Apache Kafka as a child process, for tests,
// demonstrations and experiments, without Docker: one node that is broker and
// controller, ready in 3 seconds.
//
//	server, err := kafkaserver.Start(ctx, kafkaserver.Options{})
//	if err != nil { ... }
//	defer server.Close()
//	client, err := kgo.NewClient(kgo.SeedBrokers(server.Broker()))
//
// It needs Java 17 or later (see FindJava). Kafka itself is downloaded once, 45 MB
// of jars with pinned checksums, and kept (see Fetch).
//
// To see what a program does when its broker fails, a server can be killed and
// started again on the same port and the same topics, and frozen:
//
//	what happens             method
//	the server crashes       Kill, later Start
//	it is restarted          Restart
//	it no longer answers     Freeze, later Thaw
//	it crashes now and then  KillCommand while KeepRunning runs
//
// The settings are those that tests want: every topic of Kafka's own has one
// replica, a group's first rebalance does not wait, sessions may be as short as
// 100 ms, and a topic that nobody has created is an error.
//
// Servers listen on 127.0.0.1 only and ask for no password. They do not outlive
// the program that started them, even if that is killed with SIGKILL.
//
// It runs on Linux and macOS. Nothing here knows the package testing.
package kafkaserver
