package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/examples/internal/demotest"
	"github.com/oncemill/oncemill/examples/internal/streams"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/natsserver"
	"github.com/oncemill/oncemill/testcontainers/smtpserver"
	"github.com/oncemill/oncemill/testcontainers/stripeserver"
)

// The checker finds what is wrong, whoever is to blame, and ends with status 1.
func TestTheCheckerFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts servers: make test")
	}
	binary := demotest.Build(t)
	for name, c := range map[string]struct {
		kind   string
		ledger func([]entry) []entry // nil: it is left as it is
		sql    string                // or what else is done
		want   string                // is found, and fails; "fine": nothing is
	}{
		"an honest run of mails":    {kind: "email", want: "fine"},
		"an honest run of payments": {kind: "payment", want: "fine"},

		"a mail sent twice":              {kind: "email", ledger: again("order-1"), want: "order-1: the ledger has 2 effects"},
		"a mail in doubt sent twice":     {kind: "email", ledger: func(l []entry) []entry { return append(l, of("order-3"), of("order-3")) }, want: "order-3: the ledger has 2 effects"},
		"a mail in doubt and sent":       {kind: "email", ledger: func(l []entry) []entry { return append(l, of("order-3")) }, want: "fine"},
		"a mail that was not sent":       {kind: "email", ledger: without("order-1"), want: "order-1: its claim is settled, and the ledger does not have its effect"},
		"a failed mail that was sent":    {kind: "email", ledger: func(l []entry) []entry { return append(l, of("order-2")) }, want: "order-2: its claim has failed, and the ledger has its effect"},
		"a mail to a stranger":           {kind: "email", ledger: func(l []entry) []entry { return append(l, of("order-77")) }, want: `of "order-77" belongs to no order`},
		"a mail under another key":       {kind: "email", ledger: change(func(e *entry) { e.key = "om-1" }), want: "order-1: "},
		"a message that was not parked":  {kind: "email", sql: `DELETE FROM oncemill.parked`, want: "order-3: its claim is in doubt, and its message not parked"},
		"a claim that is in flight":      {kind: "email", sql: `UPDATE oncemill.claims SET in_doubt_since = NULL, lease_until = now() + interval '1 hour' WHERE key = 'order-3'`, want: "order-3: its claim is not settled, and not listed as in doubt"},
		"a claim that is gone":           {kind: "email", sql: `DELETE FROM oncemill.claims WHERE key = 'order-2'`, want: "order-2: there is no claim"},
		"a claim of nothing":             {kind: "email", sql: `UPDATE oncemill.claims SET key = 'order-99' WHERE key = 'order-2'`, want: `a claim of "order-99" belongs to no order`},
		"a dead letter":                  {kind: "email", sql: `UPDATE oncemill.claims SET outcome = 'dead' WHERE key = 'order-2'`, want: "order-2: its claim is dead"},
		"a row that is missing":          {kind: "email", sql: `DELETE FROM records`, want: "order-1: its claim is settled, and there are 0 rows of it"},
		"a row that is there twice":      {kind: "email", sql: `INSERT INTO records SELECT * FROM records`, want: "order-1: its claim is settled, and there are 2 rows of it"},
		"a row of a mail that failed":    {kind: "email", sql: `INSERT INTO records VALUES ('order-2', 'x', 0)`, want: "order-2: it is not settled, and has a row"},
		"a receipt too many":             {kind: "email", sql: "receipt", want: "order-1: its claim is settled, and there are 2 receipts in the topic"},
		"a claim that was settled twice": {kind: "email", sql: `INSERT INTO oncemill.events (consumer, key, kind) VALUES ('mails', 'order-1', 'settled')`, want: "order-1: its claim is settled, and 2 events say so"},
		"a card charged twice":           {kind: "payment", ledger: again("order-1"), want: "order-1: the ledger has 2 effects"},
		"another amount":                 {kind: "payment", ledger: change(func(e *entry) { e.amount++ }), want: "order-1: the ledger has the amount 1002, the order 1001"},
		"another currency":               {kind: "payment", ledger: change(func(e *entry) { e.currency = "eur" }), want: "a charge in eur"},
		"another payment":                {kind: "payment", ledger: change(func(e *entry) { e.id = "pi_other" }), want: "order-1: its row has"},
		"a payment that stays in doubt":  {kind: "payment", sql: "doubt", want: "1 orders are in doubt, though the provider can be asked"},
		"a payment that has failed":      {kind: "payment", sql: "fail", want: "1 orders have failed, though no card was declined"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, c.kind)
			ledger := s.honest()
			if c.ledger != nil {
				ledger = c.ledger(ledger)
			}
			s.writeLedger(ledger)
			switch c.sql {
			case "receipt":
				s.publish("receipts", "order-1", nil)
			case "doubt":
				must(t, s.another().Doubt(t.Context(), "lost", nil))
			case "fail":
				must(t, s.another().Fail(t.Context(), "declined", nil))
			default:
				s.exec(c.sql)
			}
			code, why := s.check(binary)
			if (code == 0) != (c.want == "fine") || code > 1 {
				t.Errorf("exit status %d", code)
			}
			if c.want != "fine" && !strings.Contains(why, c.want) {
				t.Errorf("it finds %q, want %q in it", why, c.want)
			}
		})
	}
}

// An entry of a ledger, of either kind.
type entry struct {
	order, key, id, currency string
	amount                   int64
}

var amounts = map[string]int64{"order-1": 1001, "order-2": 1002, "order-3": 1003}

func of(order string) entry {
	return entry{order: order, id: "id-of-" + order, currency: "usd", amount: amounts[order]}
}

func again(order string) func([]entry) []entry {
	return func(l []entry) []entry { return append(l, of(order)) }
}

func without(order string) func([]entry) []entry {
	return func(l []entry) []entry {
		return slices.DeleteFunc(l, func(e entry) bool { return e.order == order })
	}
}

func change(how func(*entry)) func([]entry) []entry {
	return func(l []entry) []entry {
		how(&l[0])
		return l
	}
}

// A site is what is there when a run of three orders is over. Of mails one has been
// sent, one has failed and one is in doubt; all of the payments have been made.
type site struct {
	t         *testing.T
	kind      string
	consumer  string
	dir       string
	database  *testcontainers.Database
	broker    *streams.Broker
	publisher *jetstream.Publisher
}

func newSite(t *testing.T, kind string) *site {
	t.Helper()
	server, err := natsserver.Embed()
	must(t, err)
	t.Cleanup(func() { _ = server.Close() })
	broker, err := streams.Connect(server.URL())
	must(t, err)
	t.Cleanup(broker.Close)
	must(t, broker.Create(t.Context(), time.Minute, "orders", "receipts"))
	s := &site{
		t: t, kind: kind, consumer: map[string]string{"email": "mails", "payment": "payments"}[kind],
		dir: t.TempDir(), database: testcontainers.Postgres(t), broker: broker, publisher: &jetstream.Publisher{Conn: broker.Conn},
	}
	s.exec(`CREATE TABLE records (order_id text, receipt text, amount bigint)`)
	for order, amount := range amounts {
		payload := "{}"
		if kind == "payment" {
			payload = fmt.Sprintf(`{"amount": %d}`, amount)
		}
		s.publish("orders", order, []byte(payload))
	}
	s.claim()
	return s
}

// honest is the ledger that goes with the claims.
func (s *site) honest() []entry {
	if s.kind == "email" {
		return []entry{of("order-1")}
	}
	return []entry{of("order-1"), of("order-2"), of("order-3")}
}

// claim ends the three claims.
func (s *site) claim() {
	s.t.Helper()
	ctx := s.t.Context()
	consumer := (&oncemill.Inbox{DB: s.database.DB}).Consumer(s.consumer)
	for _, e := range s.honest() {
		claim, err := consumer.Claim(ctx, e.order, oncemill.ClaimOptions{})
		must(s.t, err)
		amount := e.amount
		if s.kind == "email" {
			amount = 0
		}
		must(s.t, claim.Settle(ctx, nil, func(ctx context.Context, tx oncemill.Tx) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO records VALUES ($1, $2, $3)`, e.order, s.idOf(e), amount)
			return err
		}))
		s.publish("receipts", e.order, nil)
	}
	if s.kind == "payment" {
		return
	}
	failed, err := consumer.Claim(ctx, "order-2", oncemill.ClaimOptions{})
	must(s.t, err)
	must(s.t, failed.Fail(ctx, "refused", nil))
	doubted, err := consumer.Claim(ctx, "order-3", oncemill.ClaimOptions{})
	must(s.t, err)
	must(s.t, doubted.Doubt(ctx, "lost", &oncemill.ParkedMessage{Topic: "orders"}))
}

// another is the claim of one more order.
func (s *site) another() *oncemill.Claim {
	s.t.Helper()
	s.publish("orders", "order-4", []byte(`{"amount": 1004}`))
	claim, err := (&oncemill.Inbox{DB: s.database.DB}).Consumer(s.consumer).Claim(s.t.Context(), "order-4", oncemill.ClaimOptions{})
	must(s.t, err)
	return claim
}

func (s *site) publish(topic, order string, payload []byte) {
	s.t.Helper()
	msg := message.NewMessage(fmt.Sprint(topic, order, time.Now().UnixNano()), payload)
	msg.Metadata.Set("order-id", order)
	must(s.t, s.publisher.Publish(topic, msg))
}

func (s *site) exec(query string) {
	s.t.Helper()
	_, err := s.database.DB.ExecContext(s.t.Context(), query)
	must(s.t, err)
}

// idOf returns the provider's id of an effect.
func (s *site) idOf(e entry) string {
	if s.kind == "payment" {
		return e.id
	}
	return "<" + s.keyOf(e) + "@shop.example>"
}

func (s *site) keyOf(e entry) string {
	if e.key != "" {
		return e.key
	}
	return oncemill.ProviderKey(s.consumer, e.order)
}

// writeLedger writes one as the provider does.
func (s *site) writeLedger(entries []entry) {
	s.t.Helper()
	file, err := os.Create(filepath.Join(s.dir, "ledger.jsonl"))
	must(s.t, err)
	defer file.Close()
	lines := json.NewEncoder(file)
	for _, e := range entries {
		if s.kind == "payment" {
			err = lines.Encode(stripeserver.Entry{
				Kind: "charge", ID: e.id, Key: s.keyOf(e), Amount: e.amount, Currency: e.currency,
				Metadata: map[string]string{"order": e.order},
			})
		} else {
			err = lines.Encode(smtpserver.Mail{MessageID: s.idOf(e), Recipients: []string{e.order + "@example.com"}})
		}
		must(s.t, err)
	}
}

// check runs the checker as a process of its own. why is what it finds wrong.
func (s *site) check(binary string) (exitCode int, why string) {
	s.t.Helper()
	setting, err := json.Marshal(map[string]any{
		"Kind": s.kind, "Messages": 3, "Dir": s.dir, "Postgres": s.database.URL, "NATS": s.broker.Conn.ConnectedUrl(),
	})
	must(s.t, err)
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	checker := exec.CommandContext(ctx, binary, "check")
	checker.Env = append(os.Environ(), "ONCEMILL_DEMO_SETTING="+string(setting))
	alive, err := checker.StdinPipe() // it ends when that does
	must(s.t, err)
	defer alive.Close()
	out, err := checker.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		why = string(exit.Stderr)
	} else {
		must(s.t, err)
	}
	var verdict struct{ Why []string }
	must(s.t, json.Unmarshal(out, &verdict))
	return checker.ProcessState.ExitCode(), why + strings.Join(verdict.Why, "\n")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
