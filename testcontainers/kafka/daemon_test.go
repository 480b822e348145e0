package kafka_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/consumers/kafka"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/cache"
)

// A daemon is a running `oncemill relay`, as users run it.
type daemon struct {
	t     testing.TB
	cmd   *exec.Cmd
	log   logbook
	ended chan struct{}
}

// daemonProgram builds the command.
var daemonProgram = sync.OnceValues(func() (path string, err error) {
	path, unlock, err := cache.Prepare("oncemill")
	if err != nil {
		return "", err
	}
	defer unlock()
	if out, err := exec.Command("go", "build", "-o", path, "github.com/oncemill/oncemill/cmd/oncemill").CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// relays starts a daemon that publishes the outbox of a database to Kafka. Flags
// that look like variables are some.
func relays(t testing.TB, database *testcontainers.Database, brokers string, flags ...string) *daemon {
	t.Helper()
	path, err := daemonProgram()
	must(t, err)
	flags = append([]string{"relay", "--database-url", database.URL, "--kafka-brokers", brokers,
		"--http", "127.0.0.1:0", "--poll-interval", "50ms", "--publish-timeout", "5s"}, flags...)
	d := &daemon{t: t, cmd: exec.Command(path), ended: make(chan struct{})}
	d.cmd.Stderr = &d.log
	d.cmd.Env = []string{} // not the test's
	for _, flag := range flags {
		if strings.HasPrefix(flag, "ONCEMILL_") {
			d.cmd.Env = append(d.cmd.Env, flag)
		} else {
			d.cmd.Args = append(d.cmd.Args, flag)
		}
	}
	must(t, d.cmd.Start())
	go func() {
		defer close(d.ended)
		_ = d.cmd.Wait() // its exit code tells
	}()
	t.Cleanup(func() {
		_ = d.cmd.Process.Kill() // no error if it has ended
		<-d.ended
		if t.Failed() {
			t.Logf("the daemon has logged:\n%s", &d.log)
		}
	})
	return d
}

// exitCode waits until the daemon has ended.
func (d *daemon) exitCode() int {
	d.t.Helper()
	select {
	case <-d.ended:
		return d.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		d.t.Fatal("the daemon does not end")
		return 0
	}
}

// stop ends the daemon as an operator does, and wants it to go in peace.
func (d *daemon) stop() {
	d.t.Helper()
	must(d.t, d.cmd.Process.Signal(syscall.SIGTERM))
	if code := d.exitCode(); code != 0 {
		d.t.Errorf("told to stop, it ends with exit code %d", code)
	}
	d.log.await(d.t, "relay has stopped")
}

// refuses wants the daemon not to start, and to say why.
func (d *daemon) refuses(words ...string) {
	d.t.Helper()
	if code := d.exitCode(); code != 1 {
		d.t.Errorf("exit code %d, want 1", code)
	}
	complains(d.t, errors.New(d.log.String()), words...)
}

var probesAt = regexp.MustCompile(`http=([0-9.:]+)`)

// ready returns the answer of /readyz.
func (d *daemon) ready() (status int, body string) {
	d.t.Helper()
	d.log.await(d.t, "relay starts")
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + probesAt.FindStringSubmatch(d.log.String())[1] + "/readyz")
	must(d.t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	must(d.t, err)
	return response.StatusCode, string(text)
}

// awaitReady waits until /readyz answers so, and returns what else it says.
func (d *daemon) awaitReady(want int) (body string) {
	d.t.Helper()
	until(d.t, fmt.Sprint("/readyz answers ", want), func() (done bool) {
		var status int
		status, body = d.ready()
		return status == want
	}, func() string { return body }, d.log.String)
	return body
}

// recordsOf reads the first n records of the topic.
func recordsOf(b *bench, n int) (records []*kgo.Record) {
	b.t.Helper()
	client := b.connect(kgo.ConsumeTopics(b.topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	ctx := within(b.t)
	for len(records) < n {
		fetches := client.PollFetches(ctx)
		must(b.t, ctx.Err())
		records = append(records, fetches.Records()...)
	}
	return records
}

// enqueue writes to the outbox, and returns the row's dedup id.
func enqueue(t testing.TB, database *testcontainers.Database, topic, uuid string, key, payload []byte) (dedupID string) {
	t.Helper()
	must(t, database.DB.QueryRow(`
		INSERT INTO oncemill.outbox (topic, uuid, metadata, ordering_key, payload)
		VALUES ($1, $2, '{"tenant": "acme"}', $3, $4) RETURNING dedup_id`, topic, uuid, key, payload).Scan(&dedupID))
	return dedupID
}

func rowsLeft(t testing.TB, database *testcontainers.Database) (n int) {
	t.Helper()
	must(t, database.DB.QueryRow(`SELECT count(*) FROM oncemill.outbox`).Scan(&n))
	return n
}

func awaitNoRows(t testing.TB, database *testcontainers.Database) {
	t.Helper()
	until(t, "the outbox is empty", func() bool { return rowsLeft(t, database) == 0 })
}

func TestDaemonPublishesToKafka(t *testing.T) {
	t.Parallel()
	b, database := newBench(t, 3), testcontainers.Postgres(t)
	d := relays(t, database, strings.Join(b.seeds, ","))
	dedupIDs := map[string]string{
		"keyed":     enqueue(t, database, b.topic, "keyed", []byte("order-7"), []byte(`{"state": "paid"}`)),
		"plain":     enqueue(t, database, b.topic, "plain", nil, []byte("plain")),
		"tombstone": enqueue(t, database, b.topic, "tombstone", []byte("order-7"), nil),
	}
	records := make(map[string]*kgo.Record)
	for _, r := range recordsOf(b, 3) {
		headers := make(map[string]string)
		for _, h := range r.Headers {
			headers[h.Key] = string(h.Value)
		}
		uuid := headers[kafka.UUIDHeader]
		records[uuid] = r
		if _, err := time.Parse(time.RFC3339Nano, headers[outbox.OriginMetadata]); err != nil {
			t.Errorf("%s: %v", uuid, err)
		}
		delete(headers, outbox.OriginMetadata)
		want := map[string]string{kafka.UUIDHeader: uuid, outbox.DedupMetadata: dedupIDs[uuid], "tenant": "acme"}
		if !maps.Equal(headers, want) {
			t.Errorf("%s has the headers %v, want %v", uuid, headers, want)
		}
	}
	keyed, plain, tombstone := records["keyed"], records["plain"], records["tombstone"]
	if keyed == nil || plain == nil || tombstone == nil {
		t.Fatalf("got %v", records)
	}
	if string(keyed.Key) != "order-7" || !bytes.Equal(tombstone.Key, keyed.Key) || plain.Key != nil {
		t.Errorf("the keys are %q, %q and %q", keyed.Key, tombstone.Key, plain.Key)
	}
	if string(keyed.Value) != `{"state": "paid"}` || string(plain.Value) != "plain" || tombstone.Value != nil {
		t.Errorf("the values are %q, %q and %q", keyed.Value, plain.Value, tombstone.Value)
	}
	if tombstone.Partition != keyed.Partition || tombstone.Offset <= keyed.Offset {
		t.Errorf("rows with one key are at %d:%d and %d:%d", keyed.Partition, keyed.Offset, tombstone.Partition, tombstone.Offset)
	}
	awaitNoRows(t, database)
	d.awaitReady(200)
	d.stop()
}

// What Kafka has is gone from the outbox, and what it has not is still there.
func TestDaemonDrainsOnSIGTERM(t *testing.T) {
	t.Parallel()
	b, database := newBench(t, 3), testcontainers.Postgres(t)
	const total = 20_000
	_, err := database.DB.Exec(`INSERT INTO oncemill.outbox (topic, payload) SELECT $1, n::text::bytea FROM generate_series(1, $2) n`, b.topic, total)
	must(t, err)
	d := relays(t, database, strings.Join(b.seeds, ","), "--batch", "50")
	published := func() (n int) {
		ends, err := b.admin.ListEndOffsets(within(t), b.topic)
		must(t, err)
		ends.Each(func(o kadm.ListedOffset) { n += int(o.Offset) })
		return n
	}
	until(t, "it publishes", func() bool { return published() > 100 })
	d.stop()
	sent, left := published(), rowsLeft(t, database)
	if sent+left != total {
		t.Errorf("%d published and %d left: want %d together", sent, left, total)
	}
	if left == 0 {
		t.Error("it had published everything before it was told to stop: this tests nothing")
	}
}

func TestDaemonWaitsWhileKafkaIsAway(t *testing.T) {
	t.Parallel()
	server, database := ownKafka(t), testcontainers.Postgres(t)
	b := benchOn(t, []string{server.Broker()}, 1)
	d := relays(t, database, server.Broker())
	enqueue(t, database, b.topic, "before", nil, nil)
	awaitNoRows(t, database)
	d.awaitReady(200)

	must(t, server.Kill())
	// It notices without having anything to publish.
	d.log.await(t, "Kafka is away")
	complains(t, errors.New(d.awaitReady(503)), "Kafka at "+server.Broker(), "--kafka-brokers")
	enqueue(t, database, b.topic, "meanwhile", nil, nil)
	d.log.await(t, "cannot go on")
	if n := rowsLeft(t, database); n != 1 {
		t.Errorf("%d rows wait, want 1", n)
	}

	must(t, server.Start(within(t)))
	d.log.await(t, "Kafka is back")
	awaitNoRows(t, database)
	d.awaitReady(200)
	if n := len(recordsOf(b, 2)); n != 2 {
		t.Errorf("%d records, want 2", n)
	}
	if n := strings.Count(d.log.String(), "Kafka is away"); n != 1 {
		t.Errorf("it says %d times that Kafka is away", n)
	}

	must(t, server.Freeze())
	complains(t, errors.New(d.awaitReady(503)), "no answer")
	must(t, server.Thaw())
	d.awaitReady(200)
	d.stop()
}

// silentListener returns the address of a server that takes connections and says
// nothing, as one that is frozen.
func silentListener(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
		}
	})
	t.Cleanup(func() {
		listener.Close()
		accepting.Wait()
	})
	return listener.Addr().String()
}

func TestDaemonStartsIfOneBrokerAnswers(t *testing.T) {
	t.Parallel()
	b, database := newBench(t, 1), testcontainers.Postgres(t)
	d := relays(t, database, "127.0.0.1:1,"+silentListener(t)+","+b.seeds[0])
	enqueue(t, database, b.topic, "one", nil, nil)
	awaitNoRows(t, database)
	d.awaitReady(200)
	d.stop()
}

func TestDaemonDoesNotStartIfNoBrokerAnswers(t *testing.T) {
	t.Parallel()
	database := testcontainers.Postgres(t)
	begun := time.Now()
	for address, reason := range map[string]string{"127.0.0.1:1": "refused", silentListener(t): "no answer within 10s"} {
		relays(t, database, address).refuses("cannot connect to Kafka at "+address, reason, "--kafka-brokers")
	}
	if took := time.Since(begun); took > time.Minute { // each has 10 seconds
		t.Errorf("it took %v to say so", took)
	}
}
