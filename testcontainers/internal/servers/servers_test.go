package servers_test

import (
	"database/sql"
	"errors"
	"net"
	"os"
	"testing"

	_ "github.com/lib/pq"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/testcontainers/internal/servers"
	"github.com/oncemill/oncemill/testcontainers/kafkaserver"
)

func TestWithoutDockerTheServerIsAProcess(t *testing.T) {
	t.Setenv(servers.DockerVariable, "0")
	address, stop, err := servers.Postgres(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("postgres", address)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.PingContext(t.Context()); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if err := db.PingContext(t.Context()); err == nil {
		t.Error("the server is still there")
	}
}

func TestWithoutDockerKafkaIsAProcess(t *testing.T) {
	t.Setenv(servers.DockerVariable, "0")
	if err := servers.KafkaAvailable(t.Context()); err != nil && os.Getenv(testenv.RequireKafkaVariable) != "1" {
		t.Skip("needs Java 17 or later (Debian: openjdk-17-jre-headless): install it and run make test-kafka")
	}
	brokers, stop, err := servers.Kafka(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if conn, err := net.Dial("tcp", brokers); err == nil {
		conn.Close()
		t.Error("the broker is still there")
	}
}

func TestWithoutJavaAndDockerThereIsNoKafka(t *testing.T) {
	t.Setenv(servers.DockerVariable, "0")
	t.Setenv(kafkaserver.JavaVariable, "")
	t.Setenv("JAVA_HOME", "")
	t.Setenv("PATH", "/nowhere")
	if err := servers.KafkaAvailable(t.Context()); !errors.Is(err, servers.ErrNoKafka) {
		t.Errorf("the error is %v", err)
	}
	if _, _, err := servers.Kafka(t.Context()); !errors.Is(err, servers.ErrNoKafka) || !errors.Is(err, kafkaserver.ErrNoJava) {
		t.Errorf("the error is %v", err)
	}
}

func TestDockerWithoutAnEngineIsAnError(t *testing.T) {
	if servers.EngineAnswers(t.Context()) {
		t.Skip("needs a machine without a Docker engine")
	}
	t.Setenv(servers.DockerVariable, "1")
	if _, _, err := servers.Postgres(t.Context()); err == nil {
		t.Error("Postgres started without an engine")
	} else {
		t.Log(err)
	}
	if _, _, err := servers.Kafka(t.Context()); err == nil {
		t.Error("Kafka started without an engine")
	} else {
		t.Log(err)
	}
}

func TestAContainerOfKafkaServesWhereAnEngineAnswers(t *testing.T) {
	if !servers.EngineAnswers(t.Context()) {
		t.Skip("needs a Docker engine")
	}
	t.Setenv(servers.DockerVariable, "1")
	brokers, stop, err := servers.Kafka(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	// The second request goes to where the broker says that it is.
	admin := kadm.NewClient(client)
	if _, err := admin.CreateTopic(t.Context(), 1, 1, nil, "effects"); err != nil {
		t.Error(err)
	}
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "effects"}).FirstErr(); err != nil {
		t.Error(err)
	}
}

func TestAContainerServesWhereAnEngineAnswers(t *testing.T) {
	if !servers.EngineAnswers(t.Context()) {
		t.Skip("needs a Docker engine")
	}
	t.Setenv(servers.DockerVariable, "1")
	address, stop, err := servers.Postgres(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	db, err := sql.Open("postgres", address)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.PingContext(t.Context()); err != nil {
		t.Error(err)
	}
}
