// Package guardclients runs programs in Python on oncemill guard, two processes of it on
// one database: the clients of SafeAgent, as they are published, and the backend for
// CrewAI in examples/crewai. There is nothing in it but tests.
//
// The programs are in testdata and examples/crewai, and check what they are answered; the
// tests here check what is in Postgres afterwards. The clients are installed with pip once,
// in the cache directory.
package guardclients
