package testcontainers_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/testcontainers"
)

// Servers and pools leave no goroutine behind, not even the shared ones: users
// can look for leaks of their own without a list of exceptions.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEachTestHasADatabaseOfItsOwn(t *testing.T) {
	t.Parallel()
	first, second := testcontainers.Postgres(t), testcontainers.Postgres(t)
	if first.URL == second.URL {
		t.Fatalf("both are %s", first.URL)
	}
	for _, database := range []*testcontainers.Database{first, second} {
		if ran := once(t, database.DB, "key"); !ran {
			t.Error("the claim of a fresh database was a duplicate")
		}
	}
	if ran := once(t, first.DB, "key"); ran {
		t.Error("a duplicate ran")
	}
}

func TestADatabaseIsGoneAfterItsTest(t *testing.T) {
	t.Parallel()
	var address string
	t.Run("test", func(t *testing.T) { address = testcontainers.Postgres(t).URL })
	db, err := sql.Open("postgres", address)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.PingContext(t.Context()); err == nil {
		t.Error("the database is still there")
	}
}

func TestNATSHasJetStream(t *testing.T) {
	t.Parallel()
	conn, err := nats.Connect(testcontainers.NATS(t).URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.AccountInfo(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestKafkaIsSharedAndMakesNoTopics(t *testing.T) {
	t.Parallel()
	brokers := testcontainers.Kafka(t).Brokers
	if again := testcontainers.Kafka(t).Brokers; !slices.Equal(again, brokers) {
		t.Errorf("there are two, %v and %v", brokers, again)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.AllowAutoTopicCreation(), kgo.UnknownTopicRetries(1))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	record := &kgo.Record{Topic: rand.Text(), Value: []byte("x")}
	if err := client.ProduceSync(t.Context(), record).FirstErr(); !errors.Is(err, kerr.UnknownTopicOrPartition) {
		t.Errorf("without a topic: %v", err)
	}
	admin := kadm.NewClient(client)
	if _, err := admin.CreateTopic(t.Context(), 1, 1, nil, record.Topic); err != nil {
		t.Fatal(err)
	}
	if err := client.ProduceSync(t.Context(), record).FirstErr(); err != nil {
		t.Error(err)
	}
}

func TestADatabaseOnAServerOfOnesOwnSurvivesACrash(t *testing.T) {
	t.Parallel()
	server, err := testcontainers.StartPostgres(t.Context(), testcontainers.PostgresOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	database := testcontainers.DatabaseOn(t, server)
	if ran := once(t, database.DB, "key"); !ran {
		t.Fatal("the first claim was a duplicate")
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for database.DB.PingContext(t.Context()) != nil { // until the pool has dropped what is dead
		time.Sleep(10 * time.Millisecond)
	}
	if ran := once(t, database.DB, "key"); ran {
		t.Error("a duplicate ran")
	}
}

// once claims a key, and tells whether the function ran.
func once(t *testing.T, db *sql.DB, key string) (ran bool) {
	t.Helper()
	inbox := &oncemill.Inbox{DB: db}
	err := inbox.Consumer("test").Once(t.Context(), key, func(context.Context, oncemill.Tx) error {
		ran = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return ran
}
