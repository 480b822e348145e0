package kafkaserver_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/oncemill/oncemill/testcontainers/kafkaserver"
)

// parentVariable makes the test binary play a program that starts a server and
// is then killed.
const parentVariable = "ONCEMILL_TEST_PARENT"

func TestMain(m *testing.M) {
	if os.Getenv(parentVariable) != "" {
		parent()
		return
	}
	goleak.VerifyTestMain(m)
}

// parent starts a server, freezes it so that it could not notice anything by
// itself, prints its pid and directory, and waits to be killed.
func parent() {
	server, err := kafkaserver.Start(context.Background(), kafkaserver.Options{})
	if err == nil {
		pid, _ := os.ReadFile(filepath.Join(server.Dir(), "pid"))
		err = server.Freeze()
		if err == nil {
			fmt.Println(string(pid), server.Dir())
			bufio.NewScanner(os.Stdin).Scan() // the end of the input, if the test ends early
		}
	}
	fmt.Fprintln(os.Stderr, "parent:", err)
	os.Exit(1)
}

// needJava ends a test where there is no Java, and returns where it is.
func needJava(t *testing.T) string {
	t.Helper()
	java, err := kafkaserver.FindJava(t.Context())
	if errors.Is(err, kafkaserver.ErrNoJava) && os.Getenv("ONCEMILL_TEST_REQUIRE_KAFKA") != "1" {
		t.Skip("needs Java 17 or later (Debian: openjdk-17-jre-headless): install it and run make test-kafka")
	}
	if err != nil {
		t.Fatal(err)
	}
	return java
}

// start starts a server that is closed at the end of the test.
func start(t *testing.T, options kafkaserver.Options) *kafkaserver.Server {
	t.Helper()
	options.Java = needJava(t)
	server, err := kafkaserver.Start(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Errorf("close the server: %v", err)
		}
	})
	return server
}

const topic = "effects"

// connect returns a client that reads the topic from its beginning.
func connect(t *testing.T, server *kafkaserver.Server) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(
		kgo.SeedBrokers(server.Broker()),
		kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.UnknownTopicRetries(-1),
		kgo.RetryBackoffFn(func(int) time.Duration { return 20 * time.Millisecond }),
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func create(t *testing.T, client *kgo.Client) {
	t.Helper()
	if _, err := kadm.NewClient(client).CreateTopic(t.Context(), 1, 1, nil, topic); err != nil {
		t.Fatal(err)
	}
}

// publish stores records; a server that is just being started may take a while.
func publish(t *testing.T, client *kgo.Client, values ...string) {
	t.Helper()
	for _, value := range values {
		record := &kgo.Record{Topic: topic, Value: []byte(value)}
		if err := client.ProduceSync(within(t), record).FirstErr(); err != nil {
			t.Fatalf("publish %s: %v", value, err)
		}
	}
}

// read returns the values of the first records of the topic, separated by spaces.
func read(t *testing.T, client *kgo.Client, records int) string {
	t.Helper()
	ctx := within(t)
	var values []string
	for len(values) < records {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); ctx.Err() != nil {
			t.Fatalf("read after %d records: %v", len(values), err)
		}
		fetches.EachRecord(func(r *kgo.Record) { values = append(values, string(r.Value)) })
	}
	return strings.Join(values, " ")
}

// within bounds what should be soon, on a busy machine.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// setting returns how the server understands one of its properties.
func setting(t *testing.T, client *kgo.Client, name string) string {
	t.Helper()
	configs, err := kadm.NewClient(client).DescribeBrokerConfigs(within(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, config := range configs[0].Configs {
		if config.Key == name {
			return config.MaybeValue()
		}
	}
	t.Fatalf("there is no property %s", name)
	return ""
}

// eventually waits until something that gives no signal has become true.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("still not so: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
