package upgrade_test

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
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
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/schema"
	"github.com/oncemill/oncemill/testcontainers"
)

// Workers, a relay and guarded effects go on, on the schema of the release before and on
// the new one, and do not notice when the one becomes the other.
func TestTheSchemaIsMigratedUnderALoad(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.wantVersion(schema.Oldest)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, batch := range []int{1, 32} {
		running.Go(func() { s.work(ctx, batch) })
	}
	running.Go(func() { s.relay(ctx) })
	const half = 1500
	s.order(0, half/3)
	s.await("some are handled", func() bool { return s.effects() > half/6 })
	migrated := make(chan string, 1)
	go func() { migrated <- s.migrate() }()
	s.order(half/3, half)
	if said := <-migrated; !strings.Contains(said, fmt.Sprintf("has version %d", schema.Version)) {
		t.Errorf("oncemill migrate says %q", said)
	}
	s.wantVersion(schema.Version)
	s.order(half, 2*half)
	s.await("all are handled, charged and sent", func() bool {
		return s.effects() == 2*half && s.count(`SELECT count(*) FROM charges`) == 2*half &&
			s.count(`SELECT count(*) FROM oncemill.outbox`) == 0 && s.received() == 2*half
	})
	stop()
	running.Wait()
	if n := s.count(`SELECT count(*) FROM (SELECT FROM effects GROUP BY number HAVING count(*) <> 1) AS wrong`); n != 0 {
		t.Errorf("%d orders have had more effects than one", n)
	}
	if n := s.count(`SELECT count(*) FROM oncemill.claims WHERE settled_at IS NULL`); n != 0 {
		t.Errorf("%d effects are in flight or in doubt", n)
	}
	for _, trouble := range s.troubles {
		t.Errorf("somebody noticed: %s", trouble)
	}
}

// limit is how long a test waits for what should happen soon.
const limit = 3 * time.Minute

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A site is a database with the schema of the release before, and a broker.
type site struct {
	t        *testing.T
	url      string
	db       *sql.DB
	nc       *nats.Conn
	receipts natsjs.Stream
	oncemill string // the program

	mu       sync.Mutex
	troubles []string
}

func newSite(t *testing.T) *site {
	t.Helper()
	// With fsync: without it, programs warn when they start.
	server, err := testcontainers.StartPostgres(t.Context(), testcontainers.PostgresOptions{})
	must(t, err)
	t.Cleanup(func() { server.Close() })
	s := &site{t: t, oncemill: filepath.Join(t.TempDir(), "oncemill")}
	s.url, _, err = testenv.CreateDatabase(t.Context(), server.URL(""), false)
	must(t, err)
	s.db = testenv.Open(t, s.url)
	migrations, err := schema.Under("")
	must(t, err)
	for _, m := range migrations {
		if m.Version <= schema.Oldest {
			s.exec(m.SQL)
		}
	}
	s.exec(`CREATE TABLE effects (number integer)`)
	s.exec(`CREATE TABLE charges (number integer)`)
	s.nc, err = nats.Connect(testcontainers.NATS(t).URL)
	must(t, err)
	t.Cleanup(s.nc.Close)
	js, err := natsjs.New(s.nc)
	must(t, err)
	for _, name := range []string{"upgrade-orders", "upgrade-receipts", "upgrade-dead"} {
		s.receipts, err = js.CreateStream(t.Context(), natsjs.StreamConfig{Name: name, Subjects: []string{name}, Storage: natsjs.MemoryStorage})
		must(t, err)
	}
	s.receipts, err = js.Stream(t.Context(), "upgrade-receipts")
	must(t, err)
	build := exec.Command("go", "build", "-o", s.oncemill, "github.com/oncemill/oncemill/cmd/oncemill")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return s
}

func (s *site) exec(query string) {
	s.t.Helper()
	_, err := s.db.Exec(query)
	must(s.t, err)
}

func (s *site) count(query string) (n int) {
	s.t.Helper()
	must(s.t, s.db.QueryRow(query).Scan(&n))
	return n
}

func (s *site) effects() int {
	s.t.Helper()
	return s.count(`SELECT count(*) FROM effects`)
}

func (s *site) received() int {
	s.t.Helper()
	info, err := s.receipts.Info(s.t.Context())
	must(s.t, err)
	return int(info.State.Msgs)
}

func (s *site) wantVersion(version int) {
	s.t.Helper()
	if n := s.count(`SELECT max(version) FROM oncemill.schema_version`); n != version {
		s.t.Fatalf("the schema has version %d, want %d", n, version)
	}
}

func (s *site) await(what string, is func() bool) {
	s.t.Helper()
	for began := time.Now(); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > limit {
			s.t.Fatalf("waited in vain until %s: %d effects, %d receipts, troubles: %q", what, s.effects(), s.received(), s.troubles)
		}
	}
}

func (s *site) migrate() string {
	cmd := exec.Command(s.oncemill, "migrate", "--database-url", s.url)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%v: %s", err, out)
	}
	return string(out)
}

// order sends the orders of some numbers.
func (s *site) order(from, to int) {
	s.t.Helper()
	publisher := &jetstream.Publisher{Conn: s.nc}
	for i := from; i < to; i++ {
		must(s.t, publisher.Publish("upgrade-orders", message.NewMessage(watermill.NewUUID(), []byte(fmt.Sprint(i)))))
	}
}

func (s *site) trouble(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.troubles = append(s.troubles, fmt.Sprintf(format, args...))
}

// Handle makes a logger's warnings troubles.
func (s *site) logger(ctx context.Context) *slog.Logger { return slog.New(warnings{s, ctx}) }

type warnings struct {
	s   *site
	end context.Context
}

func (warnings) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }
func (w warnings) WithAttrs([]slog.Attr) slog.Handler             { return w }
func (w warnings) WithGroup(string) slog.Handler                  { return w }
func (w warnings) Handle(_ context.Context, r slog.Record) error {
	if w.end.Err() == nil { // what comes of stopping is none
		text := r.Message
		r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
		w.s.trouble("%s", text)
	}
	return nil
}

// work is a worker: it notes each order, charges for it, and sends a receipt.
func (s *site) work(ctx context.Context, batch int) {
	db := testenv.Open(s.t, s.url)
	inbox := &oncemill.Inbox{DB: db, Batch: batch, Logger: s.logger(ctx), Observer: &oncemill.Observer{
		Failed: func(_ context.Context, err *oncemill.Error) {
			if ctx.Err() == nil {
				s.trouble("%v", err)
			}
		},
	}}
	if err := inbox.Check(ctx); err != nil {
		s.trouble("a worker does not start: %v", err)
		return
	}
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NewSlogLogger(s.logger(ctx)))
	if err == nil {
		err = consumers.Stack{Once: middleware.Once{Inbox: inbox}, DeadLetterTopic: "upgrade-dead"}.Apply(ctx, router)
	}
	if err != nil {
		s.trouble("a worker does not start: %v", err)
		return
	}
	charges := inbox.Consumer("charges")
	subscriber := &jetstream.Subscriber{Conn: s.nc, Group: "billing", MaxInFlight: 64}
	router.AddHandler("billing", "upgrade-orders", subscriber, "upgrade-receipts", &outbox.Publisher{}, func(msg *message.Message) ([]*message.Message, error) {
		tx, _ := oncemill.TxFromContext(msg.Context())
		if _, err := tx.ExecContext(msg.Context(), `INSERT INTO effects VALUES ($1::integer)`, string(msg.Payload)); err != nil {
			return nil, err
		}
		out := message.NewMessage(watermill.NewUUID(), msg.Payload)
		out.Metadata.Set(outbox.OrderingKeyMetadata, string(msg.Payload[:1])) // few keys, so that they are relayed in order
		return []*message.Message{out}, nil
	})
	charging := &jetstream.Subscriber{Conn: s.nc, Group: "charges", MaxInFlight: 16}
	messages, err := charging.Subscribe(ctx, "upgrade-orders")
	if err != nil {
		s.trouble("a worker does not subscribe: %v", err)
		return
	}
	var charged sync.WaitGroup
	charged.Go(func() {
		for msg := range messages {
			s.charge(ctx, charges, msg)
		}
	})
	if err := router.Run(ctx); err != nil {
		s.trouble("a worker ends: %v", err)
	}
	charged.Wait()
}

// charge makes a guarded effect.
func (s *site) charge(ctx context.Context, c *oncemill.Consumer, msg *message.Message) {
	claim, err := c.Claim(ctx, msg.UUID, oncemill.ClaimOptions{})
	if err == nil {
		err = claim.Settle(context.WithoutCancel(ctx), nil, func(ctx context.Context, tx oncemill.Tx) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO charges VALUES ($1::integer)`, string(msg.Payload))
			return err
		})
	}
	if err != nil {
		msg.Nack()
		return
	}
	msg.Ack()
}

func (s *site) relay(ctx context.Context) {
	db := testenv.Open(s.t, s.url)
	relay := &outbox.Relay{DB: db, Sink: &jetstream.Sink{Conn: s.nc}, ListenURL: s.url, Logger: s.logger(ctx)}
	if err := relay.Run(ctx); err != nil {
		s.trouble("the relay ends: %v", err)
	}
}
