package main_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/consumers/kafka"
	"github.com/oncemill/oncemill/testcontainers"
)

// An order that is sent twice is paid once, and one invoice goes out.
func TestHello(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers: make test")
	}
	// A server of its own: its topics are not named after the test.
	t.Setenv("ONCEMILL_TEST_KAFKA_BROKERS", "")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	broker, database := testcontainers.Kafka(t), testcontainers.Postgres(t)
	if _, err := database.DB.ExecContext(ctx, `CREATE TABLE payments (order_id text)`); err != nil {
		t.Fatal(err)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(broker.Brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	for _, topic := range []string{"orders", "invoices", "dead-letter"} {
		if _, err := admin.CreateTopic(ctx, 3, 1, nil, topic); err != nil {
			t.Fatal(err)
		}
	}
	publisher := &kafka.Publisher{Client: client}
	defer publisher.Close()
	for range 2 {
		if err := publisher.Publish("orders", message.NewMessage("order-7", []byte("7"))); err != nil {
			t.Fatal(err)
		}
	}
	stderr := run(t, database.URL, broker.Brokers)

	for settled := false; !settled; time.Sleep(10 * time.Millisecond) { // no server tells when: ask again
		if ctx.Err() != nil {
			t.Fatalf("the order was not handled:\n%s", stderr)
		}
		committed, err := admin.FetchOffsetsForTopics(ctx, "billing", "orders")
		if err != nil {
			continue // not there yet
		}
		invoices, err := admin.ListEndOffsets(ctx, "invoices")
		if err != nil {
			continue
		}
		handled, sent := int64(0), int64(0)
		committed.Each(func(o kadm.OffsetResponse) { handled += max(o.At, 0) })
		invoices.Each(func(o kadm.ListedOffset) { sent += o.Offset })
		settled = handled == 2 && sent == 1
	}
	var payments int
	if err := database.DB.QueryRowContext(ctx, `SELECT count(*) FROM payments`).Scan(&payments); err != nil || payments != 1 {
		t.Errorf("%d payments, %v, want 1", payments, err)
	}
}

// run runs the program until the test ends.
func run(t *testing.T, database string, brokers []string) *bytes.Buffer {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "hello-kafka")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	stderr := new(bytes.Buffer)
	program := exec.Command(binary)
	program.Env = append(os.Environ(), "DATABASE_URL="+database, "KAFKA_BROKERS="+strings.Join(brokers, ","))
	program.Stderr = stderr
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = program.Process.Kill()
		_ = program.Wait()
	})
	return stderr
}
