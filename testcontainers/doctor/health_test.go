package doctor_test

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/internal/doctor"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/process"
)

// Where nothing is wrong, everything is OK, and the exit code is 0.
func TestWhereNothingIsWrongEverythingIsOK(t *testing.T) {
	t.Parallel()
	server := start(t, testcontainers.PostgresOptions{})
	database := testcontainers.DatabaseOn(t, server)
	address := asRole(t, database, "reader", doctor.Reader)
	execute(t, database.DB, `GRANT pg_read_all_stats TO reader`)
	listener := pq.NewListener(database.URL, time.Second, time.Second, nil)
	defer listener.Close()
	must(t, listener.Listen(outbox.Channel("")))
	brokers := cluster(t)
	code, output := run(t, "--database-url", address, "--role", "doctor", "--nats-url", brokers)
	if code != 0 || regexp.MustCompile(`(?m)^(WARN|FAIL|SKIP) `).MatchString(output) {
		t.Errorf("exit code %d:\n%s", code, output)
	}
	for _, says := range []string{"OK    stream: \"ORDERS\": 3 replicas on file storage, messages kept for 6 days", "OK    durability", "OK    TLS", " OK, 0 WARN, 0 FAIL, 0 SKIP"} {
		if !strings.Contains(output, says) {
			t.Errorf("no %q in\n%s", says, output)
		}
	}
	// What works, but not for ever, is no failure.
	execute(t, database.DB, `INSERT INTO oncemill.outbox (topic, parked_at, last_error) VALUES ('orders', now(), 'too large')`)
	if code, output := run(t, "--database-url", address, "--role", "doctor"); code != 0 || !strings.Contains(output, "WARN  parked rows") || !strings.Contains(output, " 1 WARN, 0 FAIL") {
		t.Errorf("exit code %d:\n%s", code, output)
	}
}

// cluster starts three NATS servers with a stream of orders on all of them.
func cluster(t *testing.T) (urls string) {
	t.Helper()
	var ports [3]int
	var routes, addresses []string
	for i := range ports {
		var err error
		ports[i], err = process.FreePort()
		must(t, err)
		routes = append(routes, fmt.Sprintf(`"nats://127.0.0.1:%d"`, ports[i]))
	}
	for i, port := range ports {
		server, err := testcontainers.StartNATS(t.Context(), testcontainers.NATSOptions{Config: fmt.Sprintf(
			"server_name: n%d\ncluster { name: c, listen: \"127.0.0.1:%d\", routes: [%s] }", i, port, strings.Join(routes, ", "))})
		must(t, err)
		t.Cleanup(func() { must(t, server.Close()) })
		addresses = append(addresses, server.URL())
	}
	conn, err := nats.Connect(strings.Join(addresses, ","))
	must(t, err)
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	must(t, err)
	until(t, "the stream has all of its replicas", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		stream, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders"}, Replicas: 3, MaxAge: 6 * 24 * time.Hour})
		if err != nil { // the cluster answers nobody before it has a leader
			return false
		}
		replicas := stream.CachedInfo().Cluster.Replicas
		return len(replicas) == 2 && replicas[0].Current && replicas[1].Current
	})
	return strings.Join(addresses, ",")
}

// What docs/operating.md shows is what the doctor says.
func TestTheOutputInTheDocsIsTheDoctors(t *testing.T) {
	t.Parallel()
	server := start(t, testcontainers.PostgresOptions{})
	database := testcontainers.DatabaseOn(t, server)
	address := asRole(t, database, "oncemill_relay", doctor.Relay)
	execute(t, database.DB, `
REVOKE DELETE ON oncemill.outbox FROM oncemill_relay;
ALTER ROLE oncemill_relay SET synchronous_commit = off;
GRANT pg_read_all_stats TO oncemill_relay;
INSERT INTO oncemill.outbox (topic, created_at) VALUES ('orders', now() - interval '20 minutes'), ('orders', now())`)
	must(t, database.DB.Close())
	broker, err := testcontainers.StartNATS(t.Context(), testcontainers.NATSOptions{})
	must(t, err)
	t.Cleanup(func() { must(t, broker.Close()) })
	conn, err := nats.Connect(broker.URL())
	must(t, err)
	defer conn.Close()
	js, err := jetstream.New(conn)
	must(t, err)
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders"}})
	must(t, err)

	code, output := run(t, "--role", "relay", "--database-url", address, "--nats-url", broker.URL())
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	u, err := url.Parse(address)
	must(t, err)
	output = strings.ReplaceAll(output, u.Path, "/app")
	page, err := os.ReadFile("../../docs/operating.md")
	must(t, err)
	shown := regexp.MustCompile("(?s)```\n\\$ oncemill doctor [^\n]*\n(.*?)```").FindSubmatch(page)
	if shown == nil {
		t.Fatalf("docs/operating.md shows no output, which is\n%s", output)
	}
	if got, want := masked(output), masked(string(shown[1])); got != want {
		t.Errorf("docs/operating.md shows another output than\n%s", output)
	}
}

// A server without streams takes nothing from a relay. What needs a cluster is said of a
// cluster only.
func TestAServerWithoutStreamsIsAFailure(t *testing.T) {
	t.Parallel()
	server := start(t, testcontainers.PostgresOptions{})
	address := asRole(t, testcontainers.DatabaseOn(t, server), "reader", doctor.Reader)
	broker, err := testcontainers.StartNATS(t.Context(), testcontainers.NATSOptions{})
	must(t, err)
	t.Cleanup(func() { must(t, broker.Close()) })
	_, output := run(t, "--database-url", address, "--nats-url", broker.URL())
	if !strings.Contains(output, "FAIL  stream: there is no stream\n") || strings.Contains(output, "--replicas") {
		t.Error(output)
	}
	_, output = run(t, "--database-url", address, "--nats-url", cluster(t), "--topic", "nowhere")
	if !strings.Contains(output, "nats stream add NAME --subjects nowhere --defaults --replicas 3") {
		t.Error(output)
	}
}

// masked is an output without what differs from one machine to the next.
func masked(output string) string {
	for _, mask := range [][2]string{
		{`Postgres \d.*`, "Postgres N"}, {`nats-server \d.*`, "nats-server N"}, {`127\.0\.0\.1:\d+`, "HOST"}, {`\d+(\.\d+)? (bytes|kB|MB)`, "SIZE"},
		{`answers in \S+`, "answers in TIME"}, {`the oldest for [0-9hms]+`, "the oldest for TIME"}, {`\d+ of \d+ in use`, "N in use"}, {`the server's clock.*`, "the server's clock"},
	} {
		output = regexp.MustCompile(mask[0]).ReplaceAllString(output, mask[1])
	}
	return output
}
