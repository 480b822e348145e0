package main_test

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	wmsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"

	main "github.com/oncemill/oncemill/cmd/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
)

// An oldOutbox is the tables of a forwarder.
type oldOutbox struct {
	t   *testing.T
	url string
	db  *sql.DB
	pub message.Publisher
}

func newOldOutbox(t *testing.T) *oldOutbox {
	t.Helper()
	o := &oldOutbox{t: t, url: testenv.PostgresURL(t)}
	o.db = testenv.Open(t, o.url)
	s, err := wmsql.NewSubscriber(o.db, wmsql.SubscriberConfig{SchemaAdapter: wmsql.DefaultPostgreSQLSchema{}, OffsetsAdapter: wmsql.DefaultPostgreSQLOffsetsAdapter{}}, watermill.NopLogger{})
	must(t, err)
	must(t, s.SubscribeInitialize("events"))
	o.pub, err = wmsql.NewPublisher(o.db, wmsql.PublisherConfig{SchemaAdapter: wmsql.DefaultPostgreSQLSchema{}}, watermill.NopLogger{})
	must(t, err)
	return o
}

func (o *oldOutbox) publish(n int) {
	o.t.Helper()
	wrapped := forwarder.NewPublisher(o.pub, forwarder.PublisherConfig{ForwarderTopic: "events"})
	for i := range n {
		must(o.t, wrapped.Publish(fmt.Sprint("orders.", i%2), message.NewMessage(watermill.NewUUID(), nil)))
	}
}

func (o *oldOutbox) call(flags ...string) (code int, stdout, stderr string) {
	o.t.Helper()
	return call(o.t, map[string]string{"ONCEMILL_DATABASE_URL": o.url}, append([]string{"outbox", "drain", "--topic", "events", "--consumer-group", ""}, flags...)...)
}

func (o *oldOutbox) want(what string, n int) {
	o.t.Helper()
	var got int
	must(o.t, o.db.QueryRow(`SELECT count(*) FROM oncemill.outbox `+what).Scan(&got))
	if got != n {
		o.t.Errorf("%d rows %s, want %d", got, what, n)
	}
}

func TestOutboxDrain(t *testing.T) {
	t.Parallel()
	o := newOldOutbox(t)
	o.publish(5)
	if code, _, stderr := o.call(); code != 1 || !strings.Contains(stderr, "oncemill outbox drain: the consumer group has no offsets row") || !strings.Contains(stderr, "--from-beginning") {
		t.Errorf("without a group: exit code %d: %s", code, stderr)
	}
	code, stdout, stderr := o.call("--dry-run", "--from-beginning")
	if code != 0 || !strings.Contains(stdout, "orders.0  3\n") || !strings.Contains(stdout, "orders.1  2\n") || !strings.Contains(stdout, "nothing was moved") {
		t.Errorf("--dry-run: exit code %d: %s%s", code, stdout, stderr)
	}
	o.want("", 0)
	if code, stdout, stderr := o.call("--from-beginning"); code != 0 || !strings.HasPrefix(stdout, "5 messages moved, 0 of them parked; group '' is at offset 5 of transaction ") || !strings.Contains(stderr, "drain begins") {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	o.want("", 5)

	must(t, o.pub.Publish("events", message.NewMessage("bare", []byte("{}"))))
	o.publish(1)
	for _, flag := range []string{"--dry-run", "--plain=false"} {
		if code, _, stderr := o.call(flag); code != 1 || !strings.Contains(stderr, `message "bare" at offset 6 of transaction`) || !strings.Contains(stderr, "--park") {
			t.Errorf("%s: exit code %d: %s", flag, code, stderr)
		}
	}
	if code, stdout, stderr := o.call("--park"); code != 0 || !strings.HasPrefix(stdout, "2 messages moved, 1 of them parked") {
		t.Errorf("--park: exit code %d: %s%s", code, stdout, stderr)
	}
	o.want("WHERE parked_at IS NOT NULL AND uuid = 'bare'", 1)
	if code, stdout, _ := o.call("--from-now"); code != 0 || !strings.HasPrefix(stdout, "0 messages moved") {
		t.Errorf("nothing left: exit code %d: %s", code, stdout)
	}
}

func TestOutboxDrainFollowsUntilItIsTold(t *testing.T) {
	t.Parallel()
	o := newOldOutbox(t)
	ctx, stop := context.WithCancel(t.Context())
	var stderr testenv.Log
	code := make(chan int, 1)
	go func() {
		code <- main.Run(ctx, []string{"outbox", "drain", "--topic", "events", "--consumer-group=", "--from-beginning", "--follow", "--poll-interval", "10ms"},
			map[string]string{"ONCEMILL_DATABASE_URL": o.url}, io.Discard, &stderr)
	}()
	for n := range 3 {
		o.publish(1)
		poll(t, func() bool {
			var rows int
			must(t, o.db.QueryRow(`SELECT count(*) FROM oncemill.outbox`).Scan(&rows))
			return rows == n+1
		})
	}
	stop()
	if got := <-code; got != 0 {
		t.Errorf("exit code %d: %s", got, stderr.String())
	}
}

func TestOutboxDrainIsToldWhatToDo(t *testing.T) {
	t.Parallel()
	for want, flags := range map[string][]string{
		"--topic":                            {"--consumer-group", "g"},
		"--consumer-group ''":                {"--topic", "events"},
		"--from-beginning and --from-now":    {"--topic", "events", "--consumer-group", "g", "--from-beginning", "--from-now"},
		"--follow and --dry-run":             {"--topic", "events", "--consumer-group", "g", "--follow", "--dry-run"},
		"ONCEMILL_DATABASE_URL":              {"--topic", "events", "--consumer-group", "g"},
		"want a whole number of at least 1":  {"--batch", "0"},
		"there is no flag --consumer-groups": {"--consumer-groups", "g"},
	} {
		code, _, stderr := call(t, nil, append([]string{"outbox", "drain"}, flags...)...)
		if code != 2 || !strings.Contains(stderr, want) {
			t.Errorf("%v: exit code %d: %s", flags, code, stderr)
		}
	}
	// What it does cannot be undone, and does not come from the environment.
	code, _, stderr := call(t, map[string]string{"ONCEMILL_TOPIC": "events", "ONCEMILL_CONSUMER_GROUP": "g", "ONCEMILL_PARK": "true"}, "outbox", "drain")
	if code != 2 || !strings.Contains(stderr, "needs a topic") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	_, stdout, _ := call(t, nil, "outbox", "drain", "--help")
	for _, words := range []string{"  oncemill outbox drain --database-url", "--dry-run", "--messages-table NAME", "--offsets-table NAME", "docs/moving-in.md"} {
		if !strings.Contains(stdout, words) {
			t.Errorf("--help does not say %s:\n%s", words, stdout)
		}
	}
}
