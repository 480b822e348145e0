package main_test

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/examples/brokerorders"
	"github.com/oncemill/oncemill/testcontainers"
)

// session is a trading day: a worker as a process of its own, its servers, and a broker
// that does what the test says.
type session struct {
	t       *testing.T
	ctx     context.Context
	db      *sql.DB
	desk    *oncemill.Consumer
	broker  *brokerorders.Server
	orders  *jetstream.Publisher
	binary  string
	environ []string
	log     logBuffer
}

type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newSession(t *testing.T) *session {
	t.Helper()
	if testing.Short() {
		t.Skip("starts servers: make test")
	}
	t.Setenv("ONCEMILL_TEST_NATS_URL", "") // a server of its own: its subjects are not named after the test
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	database, queue := testcontainers.Postgres(t), testcontainers.NATS(t)
	conn, err := nats.Connect(queue.URL)
	must(t, err)
	t.Cleanup(conn.Close)
	js, err := natsjs.New(conn)
	must(t, err)
	_, err = js.CreateStream(ctx, natsjs.StreamConfig{Name: "DESK", Subjects: []string{"orders", "dead-letter"}})
	must(t, err)
	broker, err := brokerorders.Start(brokerorders.Options{})
	must(t, err)
	t.Cleanup(func() { must(t, broker.Close()) })
	s := &session{
		t: t, ctx: ctx, db: database.DB, broker: broker, orders: &jetstream.Publisher{Conn: conn},
		desk:   (&oncemill.Inbox{DB: database.DB}).Consumer("desk"),
		binary: filepath.Join(t.TempDir(), "trading"),
		environ: append(os.Environ(), "DATABASE_URL="+database.URL, "NATS_URL="+queue.URL,
			"BROKER_URL="+broker.URL(), "BROKER_TOKEN="+brokerorders.DefaultToken),
	}
	if out, err := exec.Command("go", "build", "-o", s.binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the worker's log:\n%s", s.log.String())
		}
	})
	return s
}

func TestABrokerCanBeStartedByHand(t *testing.T) {
	t.Parallel()
	binary := filepath.Join(t.TempDir(), "trading")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	broker := exec.Command(binary, "-broker", "127.0.0.1:0")
	output, err := broker.StdoutPipe()
	must(t, err)
	must(t, broker.Start())
	defer broker.Process.Kill() //nolint:errcheck // it has ended, unless the test has failed
	line, err := bufio.NewReader(output).ReadString('\n')
	must(t, err)
	var provider brokerorders.Provider
	if _, err := fmt.Sscanf(strings.NewReplacer("BROKER_URL=", "", "BROKER_TOKEN=", "").Replace(line), "%s %s", &provider.URL, &provider.Token); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	must(t, provider.Check(t.Context()))
	must(t, broker.Process.Signal(os.Interrupt))
	must(t, broker.Wait())
}

// work starts a worker.
func (s *session) work() *exec.Cmd {
	s.t.Helper()
	worker := exec.Command(s.binary)
	worker.Env, worker.Stderr = s.environ, &s.log
	must(s.t, worker.Start())
	s.t.Cleanup(func() {
		_ = worker.Process.Kill()
		_ = worker.Wait()
	})
	return worker
}

// send publishes an order, as a bot does that does not know of others.
func (s *session) send(id, purpose, side string, cents int) {
	s.t.Helper()
	text := fmt.Sprintf(`{"id": %q, "purpose": %q, "side": %q, "symbol": "SQQQ", "quantity": "6", "cents": %d}`, id, purpose, side, cents)
	must(s.t, s.orders.Publish("orders", message.NewMessage(watermill.NewUUID(), []byte(text))))
}

// until waits for something that no server tells of.
func (s *session) until(what string, ok func() bool) {
	s.t.Helper()
	for !ok() {
		if s.ctx.Err() != nil {
			s.t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (s *session) ended(id string, outcome oncemill.Outcome) *oncemill.Held {
	s.t.Helper()
	var held *oncemill.Held
	s.until(id+" is "+string(outcome), func() (ok bool) {
		var err error
		held, err = s.desk.Held(s.ctx, id)
		must(s.t, err)
		return held != nil && held.Outcome == outcome
	})
	return held
}

func (s *session) kinds(id string) (kinds string) {
	s.t.Helper()
	events, err := s.desk.Events(s.ctx, id, 0, 100)
	must(s.t, err)
	for _, e := range events {
		kinds += string(e.Kind) + ", "
	}
	return kinds
}

func (s *session) count(query string) (n int) {
	s.t.Helper()
	must(s.t, s.db.QueryRowContext(s.ctx, query).Scan(&n))
	return n
}

func (s *session) requests(id string) int { return s.broker.Requests(oncemill.ProviderKey("desk", id)) }

// An exit meets a 503, which proves nothing, is looked for and not found, is sent again
// with the same id and is refused for good. It is not sent a third time, and the
// position that the broker does not have does not block the next entry.
func TestTheExitSide(t *testing.T) {
	s := newSession(t)
	s.broker.Script(oncemill.ProviderKey("desk", "exit-1133"), brokerorders.Unavailable, brokerorders.Reject)
	s.work()

	s.send("entry-1106", "entry", "buy", 4300)
	s.ended("entry-1106", oncemill.Settled)
	if n := s.count(`SELECT count(*) FROM positions WHERE symbol = 'SQQQ' AND quantity = 6`); n != 1 {
		t.Error("the entry is settled, but there is no position")
	}
	s.send("entry-1107", "entry", "buy", 4300)
	if held := s.ended("entry-1107", oncemill.Failed); !strings.Contains(held.Reason, "position since order entry-1106") {
		t.Errorf("a second entry failed because of %q", held.Reason)
	}

	s.send("exit-1133", "exit", "sell", 4300)
	failed := s.ended("exit-1133", oncemill.Failed)
	if !strings.Contains(failed.Reason, "422") {
		t.Errorf("the exit failed because of %q, want the broker's 422", failed.Reason)
	}
	if n := s.requests("exit-1133"); n != 2 {
		t.Errorf("the exit was sent %d times, want 2", n)
	}
	if kinds := s.kinds("exit-1133"); !strings.HasPrefix(kinds, "claimed, in doubt, ") || !strings.HasSuffix(kinds, "released, claimed, failed, ") {
		t.Errorf("events of the exit: %s", kinds)
	}
	if n := s.count(`SELECT (SELECT count(*) FROM positions) * 10 + (SELECT count(*) FROM corrections WHERE order_id = 'exit-1133')`); n != 1 {
		t.Error("the phantom is still there, or its correction is not")
	}

	s.send("exit-1133", "exit", "sell", 4300) // attempt 3
	s.until("the third attempt is blocked", func() bool { return strings.Contains(s.kinds("exit-1133"), "blocked") })
	if n := s.requests("exit-1133"); n != 2 {
		t.Errorf("the exit was sent %d times, want 2", n)
	}
	_, err := s.desk.Claim(s.ctx, "exit-1133", oncemill.ClaimOptions{})
	var taken *oncemill.Error
	if !errors.Is(err, oncemill.ErrSettled) || !errors.As(err, &taken) || taken.Held.Reason != failed.Reason {
		t.Errorf("who asks again gets %v, want the failure", err)
	}

	s.send("entry-1400", "entry", "buy", 4300)
	s.ended("entry-1400", oncemill.Settled)
	if n := s.count(`SELECT count(*) FROM positions WHERE opened_by = 'entry-1400' AND quantity = 6`); n != 1 {
		t.Error("the next turn's entry did not make a position")
	}
	if placed := s.broker.Ledger(); len(placed) != 2 {
		t.Errorf("the broker has placed %+v, want the two entries", placed)
	}
}

// An order of which nobody knows holds up entries, and the log says which one.
func TestAnEntryWaitsVisiblyForAnOrderInDoubt(t *testing.T) {
	s := newSession(t)
	payload := []byte(`{"id": "exit-1", "purpose": "exit", "side": "sell", "symbol": "SQQQ", "quantity": "6", "cents": 1}`)
	exit, err := s.desk.Claim(s.ctx, "exit-1", oncemill.ClaimOptions{Payload: payload})
	must(t, err)
	must(t, exit.Doubt(s.ctx, "reply lost", nil))
	_, err = s.db.ExecContext(s.ctx, `UPDATE oncemill.claims SET ask_after = 'infinity'`) // a resolver has given up
	must(t, err)
	s.work()
	s.send("entry-1", "entry", "buy", 4300)
	s.until("the entry waits", func() bool {
		return strings.Contains(s.log.String(), "entry into SQQQ waits: order exit-1 is in doubt")
	})
	must(t, s.desk.Resolve(s.ctx, "exit-1", exit.Token(), oncemill.Happened, "the broker's statement has it"))
	s.ended("entry-1", oncemill.Settled)
}

// A worker that is killed leaves its order in doubt, and the next one asks the broker.
func TestAnOrderSurvivesItsWorker(t *testing.T) {
	s := newSession(t)
	s.broker.Script(oncemill.ProviderKey("desk", "entry-1"), brokerorders.HangAfter)
	worker := s.work()
	s.send("entry-1", "entry", "buy", 4300)
	s.until("the order is placed", func() bool { return len(s.broker.Ledger()) == 1 })
	must(t, worker.Process.Kill())
	_, _ = worker.Process.Wait()
	// Instead of waiting for the lease of 30 seconds:
	_, err := s.db.ExecContext(s.ctx, `UPDATE oncemill.claims SET lease_until = clock_timestamp(), effect_until = clock_timestamp()`)
	must(t, err)
	s.work()
	s.ended("entry-1", oncemill.Settled)
	if n := s.count(`SELECT count(*) FROM positions WHERE quantity = 6`); n != 1 || s.requests("entry-1") != 1 {
		t.Errorf("%d positions and %d requests, want 1 and 1", n, s.requests("entry-1"))
	}
}
