// Package testcontainers gives tests the real servers that Oncemill works with,
// with Docker or without.
//
//	func TestBilling(t *testing.T) {
//		database := testcontainers.Postgres(t) // a fresh one, with Oncemill's schema
//		broker := testcontainers.NATS(t)       // with JetStream, or
//		kafka := testcontainers.Kafka(t)       // an Apache Kafka
//		inbox := &oncemill.Inbox{DB: database.DB}
//		...
//	}
//
// # Where the servers come from
//
// Postgres is, in this order: the server in ONCEMILL_TEST_POSTGRES_URL; a process
// started from the Postgres of this machine (the initdb in ONCEMILL_POSTGRES_BIN,
// on PATH, or the newest in /usr/lib/postgresql); a container, if a Docker engine
// answers; a process started from a pinned build that is downloaded once. A
// process is preferred to a container because it is ready in a second and depends
// on nothing. ONCEMILL_TEST_DOCKER=1 asks for the container, ONCEMILL_TEST_DOCKER=0
// forbids it.
//
// NATS is the server in ONCEMILL_TEST_NATS_URL, or runs inside the test's process.
//
// Kafka is, in this order: the brokers in ONCEMILL_TEST_KAFKA_BROKERS; a process,
// if there is Java 17 or later (the program in ONCEMILL_JAVA, in JAVA_HOME, or on
// PATH), from jars that are downloaded once; a container, if a Docker engine
// answers. ONCEMILL_TEST_DOCKER holds for it as well. Without Java and Docker its
// tests are skipped, or fail with ONCEMILL_TEST_REQUIRE_KAFKA=1.
//
// # Faults
//
// A test that kills, restarts or freezes a server needs one of its own:
// StartPostgres, StartNATS and StartKafka. One that has a server fail over to
// another takes StartPostgresPair or StartNATSCluster. Those are child processes on
// every machine. Nothing they start outlives the test's process, even if that is killed.
//
// It runs on Linux and macOS. The packages postgres, natsserver and kafkaserver do
// the work and can be used without the package testing.
package testcontainers
