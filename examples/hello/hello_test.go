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
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/testcontainers"
)

// The README shows this program, all of it.
func TestTheREADMEShowsThisProgram(t *testing.T) {
	program, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), "```go\n"+string(program)+"```\n") {
		t.Error("README.md does not show examples/hello/main.go as it is")
	}
}

// An order that is sent twice is paid once, and one invoice goes out.
func TestHello(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers: make test")
	}
	// A server of its own: its subjects are not named after the test.
	t.Setenv("ONCEMILL_TEST_NATS_URL", "")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	database, broker := testcontainers.Postgres(t), testcontainers.NATS(t)
	if _, err := database.DB.ExecContext(ctx, `CREATE TABLE payments (order_id text)`); err != nil {
		t.Fatal(err)
	}
	conn, err := nats.Connect(broker.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	js, err := natsjs.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	for name, subject := range map[string]string{"ORDERS": "orders", "INVOICES": "invoices", "DEAD": "dead-letter"} {
		if _, err := js.CreateStream(ctx, natsjs.StreamConfig{Name: name, Subjects: []string{subject}}); err != nil {
			t.Fatal(err)
		}
	}
	publisher := &jetstream.Publisher{Conn: conn}
	for range 2 {
		if err := publisher.Publish("orders", message.NewMessage("order-7", []byte("7"))); err != nil {
			t.Fatal(err)
		}
	}
	stderr := run(t, database.URL, broker.URL)

	for settled := false; !settled; time.Sleep(10 * time.Millisecond) { // no server tells when: ask again
		if ctx.Err() != nil {
			t.Fatalf("the order was not handled:\n%s", stderr)
		}
		orders, err := js.Consumer(ctx, "ORDERS", "billing~orders")
		if err != nil {
			continue // not there yet
		}
		invoices, err := js.Stream(ctx, "INVOICES")
		if err != nil {
			t.Fatal(err)
		}
		info := orders.CachedInfo()
		settled = info.NumPending == 0 && info.NumAckPending == 0 && info.Delivered.Stream == 2 && invoices.CachedInfo().State.Msgs == 1
	}
	var payments int
	if err := database.DB.QueryRowContext(ctx, `SELECT count(*) FROM payments`).Scan(&payments); err != nil || payments != 1 {
		t.Errorf("%d payments, %v, want 1", payments, err)
	}
}

// run runs the program until the test ends.
func run(t *testing.T, database, broker string) *bytes.Buffer {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "hello")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	stderr := new(bytes.Buffer)
	program := exec.Command(binary)
	program.Env = append(os.Environ(), "DATABASE_URL="+database, "NATS_URL="+broker)
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
