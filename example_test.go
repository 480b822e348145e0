package oncemill_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
)

// exampleDB is the database that the examples run on; TestExamples makes one.
var exampleDB *sql.DB

// Examples need a server as tests do, but cannot be skipped: this runs them as
// tests, and compares what they print.
func TestExamples(t *testing.T) {
	for name, example := range map[string]func(){
		"Consumer.Once": ExampleConsumer_Once, "Consumer.OnceWith": ExampleConsumer_OnceWith,
		"ContextWithTx": ExampleContextWithTx, "Error": ExampleError, "Tx.StmtContext": ExampleTx_StmtContext,
		"Inbox.Run": ExampleInbox_Run, "Observer": ExampleObserver,
		"Consumer.Claim": ExampleConsumer_Claim, "Claim.Keep": ExampleClaim_Keep, "Consumer.Resolve": ExampleConsumer_Resolve,
		"Resolver": ExampleResolver, "Consumer.Resume": ExampleConsumer_Resume, "Consumer.NoteDoubts": ExampleConsumer_NoteDoubts, "Inbox.Blocked": ExampleInbox_Blocked, "VerdictOf": ExampleVerdictOf,
	} {
		exampleDB = testenv.DB(t)
		_, err := exampleDB.Exec(`CREATE TABLE payments (account text, cents bigint)`)
		must(t, err)
		if got := printed(t, example); got != examples[name] {
			t.Errorf("%s printed\n%s\nwant\n%s", name, got, examples[name])
		}
	}
}

// printed returns what f writes to standard output.
func printed(t *testing.T, f func()) string {
	t.Helper()
	read, write, err := os.Pipe()
	must(t, err)
	stdout := os.Stdout
	os.Stdout = write
	defer func() { os.Stdout = stdout }()
	f()
	write.Close()
	buf := make([]byte, 4096)
	n, _ := read.Read(buf)
	read.Close()
	return string(buf[:n])
}

var examples = map[string]string{
	"Consumer.Once":       "<nil> 1\n<nil> 1\n",
	"Consumer.OnceWith":   "true\n",
	"ContextWithTx":       "1\n",
	"Error":               "claim of order-7 by billing failed at handler: no funds\n",
	"Tx.StmtContext":      "<nil>\n",
	"Inbox.Run":           "<nil>\n",
	"Observer":            "committed order-7\nduplicate order-7\n",
	"Consumer.Claim":      "charging order-7\nbefore: receipt\n",
	"Claim.Keep":          "<nil>\n",
	"Consumer.Resolve":    "order-7: reply lost\n<nil>\n",
	"Resolver":            "asked about order-7\n<nil>\n",
	"Consumer.Resume":     "<nil>\n",
	"Consumer.NoteDoubts": "0 <nil>\n",
	"Inbox.Blocked":       "orders: 1 blocked, 452.00 USD\n",
	"VerdictOf":           "not happened: connection refused\nnever: declined\n: reply lost\n",
}

func pay(ctx context.Context, tx oncemill.Tx) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO payments VALUES ('alice', 500)`)
	return err
}

func ExampleConsumer_Once() {
	ctx := context.Background()
	inbox := &oncemill.Inbox{DB: exampleDB}
	billing := inbox.Consumer("billing")

	for range 2 { // the message is delivered twice
		err := billing.Once(ctx, "order-7", pay)
		var payments int
		_ = exampleDB.QueryRow(`SELECT count(*) FROM payments`).Scan(&payments)
		fmt.Println(err, payments)
	}
}

func ExampleConsumer_OnceWith() {
	ctx := context.Background()
	billing := (&oncemill.Inbox{DB: exampleDB}).Consumer("billing")

	first := oncemill.ClaimOptions{Fingerprint: []byte("pay 5 to alice")}
	other := oncemill.ClaimOptions{Fingerprint: []byte("pay 9 to bob")}
	if err := billing.OnceWith(ctx, "order-7", first, pay); err != nil {
		log.Fatal(err)
	}
	err := billing.OnceWith(ctx, "order-7", other, pay)
	fmt.Println(errors.Is(err, oncemill.ErrKeyReused))
}

// A unit test of a handler begins a transaction, runs the handler in it, looks
// at what it wrote, and rolls back.
func ExampleContextWithTx() {
	sqlTx, err := exampleDB.Begin()
	if err != nil {
		log.Fatal(err)
	}
	defer sqlTx.Rollback()

	ctx := oncemill.ContextWithTx(context.Background(), sqlTx)
	tx, _ := oncemill.TxFromContext(ctx)
	if err := pay(ctx, tx); err != nil {
		log.Fatal(err)
	}
	var payments int
	_ = sqlTx.QueryRow(`SELECT count(*) FROM payments`).Scan(&payments)
	fmt.Println(payments)
}

func ExampleError() {
	billing := (&oncemill.Inbox{DB: exampleDB}).Consumer("billing")
	err := billing.Once(context.Background(), "order-7", func(context.Context, oncemill.Tx) error {
		return errors.New("no funds")
	})
	var failed *oncemill.Error
	if errors.As(err, &failed) {
		fmt.Printf("claim of %s by %s failed at %s: %v\n", failed.Key, failed.Consumer, failed.Op, failed.Err)
	}
}

func ExampleTx_StmtContext() {
	insert, err := exampleDB.Prepare(`INSERT INTO payments VALUES ($1, $2)`)
	if err != nil {
		log.Fatal(err)
	}
	defer insert.Close()
	billing := (&oncemill.Inbox{DB: exampleDB}).Consumer("billing")
	fmt.Println(billing.Once(context.Background(), "order-7", func(ctx context.Context, tx oncemill.Tx) error {
		_, err := tx.StmtContext(ctx, insert).ExecContext(ctx, "alice", 500)
		return err
	}))
}

func ExampleInbox_Run() {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	inbox := &oncemill.Inbox{DB: exampleDB, Retention: 30 * 24 * time.Hour}
	inbox.Consumer("billing")
	fmt.Println(inbox.Run(ctx)) // until ctx ends
}

func ExampleObserver() {
	inbox := &oncemill.Inbox{DB: exampleDB, Observer: &oncemill.Observer{
		Committed: func(_ context.Context, _, key string, _ time.Duration) { fmt.Println("committed", key) },
		Duplicate: func(_ context.Context, _, key string) { fmt.Println("duplicate", key) },
	}}
	for range 2 {
		if err := inbox.Consumer("billing").Once(context.Background(), "order-7", pay); err != nil {
			log.Fatal(err)
		}
	}
}

func ExampleConsumer_Claim() {
	ctx := context.Background()
	payments := (&oncemill.Inbox{DB: exampleDB}).Consumer("payments")
	for range 2 { // the request comes twice
		claim, err := payments.Claim(ctx, "order-7", oncemill.ClaimOptions{Amount: "452.00", Currency: "USD"})
		var taken *oncemill.Error
		if errors.Is(err, oncemill.ErrSettled) && errors.As(err, &taken) {
			fmt.Printf("before: %s\n", taken.Held.Result)
			continue
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("charging", claim.Key()) // with claim.ProviderKey(), before claim.Deadline()
		if err := claim.Settle(ctx, []byte("receipt"), pay); err != nil {
			log.Fatal(err)
		}
	}
}

// An effect that may take longer than its lease.
func ExampleClaim_Keep() {
	ctx := context.Background()
	claim, err := (&oncemill.Inbox{DB: exampleDB}).Consumer("reports").Claim(ctx, "2026", oncemill.ClaimOptions{Lease: time.Minute})
	if err != nil {
		log.Fatal(err)
	}
	err = claim.Keep(ctx, func(ctx context.Context) error {
		return nil // hours of work, as long as ctx does not end
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(claim.Settle(ctx, nil, nil))
}

func ExampleConsumer_Resolve() {
	ctx := context.Background()
	inbox := &oncemill.Inbox{DB: exampleDB}
	claim, err := inbox.Consumer("payments").Claim(ctx, "order-7", oncemill.ClaimOptions{})
	if err != nil {
		log.Fatal(err)
	}
	if err := claim.Doubt(ctx, "reply lost", nil); err != nil {
		log.Fatal(err)
	}

	doubts, err := inbox.InDoubt(ctx, "payments", oncemill.InDoubt{}, 100)
	if err != nil {
		log.Fatal(err)
	}
	for _, d := range doubts {
		fmt.Printf("%s: %s\n", d.Key, d.Reason)
		fmt.Println(inbox.Consumer(d.Consumer).Resolve(ctx, d.Key, d.Token, oncemill.Happened, "found it in the dashboard"))
	}
}

func ExampleResolver() {
	ctx, cancel := context.WithCancel(context.Background())
	payments := (&oncemill.Inbox{DB: exampleDB}).Consumer("payments")
	claim, err := payments.Claim(ctx, "order-7", oncemill.ClaimOptions{})
	if err != nil {
		log.Fatal(err)
	}
	if err := claim.Doubt(ctx, "reply lost", nil); err != nil {
		log.Fatal(err)
	}
	resolver := oncemill.Resolver{
		Consumer: payments,
		Ask: func(ctx context.Context, d oncemill.InDoubt) (oncemill.Resolution, error) {
			fmt.Println("asked about", d.Key) // the provider, by d.ProviderKey()
			cancel()
			return oncemill.Resolution{Verdict: oncemill.Happened, Result: []byte("receipt")}, nil
		},
	}
	fmt.Println(resolver.Run(ctx)) // until ctx ends
}

func ExampleInbox_Blocked() {
	ctx := context.Background()
	inbox := &oncemill.Inbox{DB: exampleDB}
	for range 2 { // two bots have the same idea
		_, _ = inbox.Consumer("orders").Claim(ctx, "buy TQQQ", oncemill.ClaimOptions{Amount: "452.00", Currency: "USD"})
	}
	blocked, err := inbox.Blocked(ctx, "", time.Now().Add(-24*time.Hour), time.Now().Add(time.Minute))
	if err != nil {
		log.Fatal(err)
	}
	for _, b := range blocked {
		fmt.Printf("%s: %d blocked, %s %s\n", b.Consumer, b.Claims, b.Amount, b.Currency)
	}
}

// What an error says about an effect.
func ExampleVerdictOf() {
	for _, err := range []error{
		oncemill.DidNotHappen(errors.New("connection refused")),
		oncemill.NeverWill(errors.New("declined")),
		errors.New("reply lost"),
	} {
		fmt.Printf("%s: %v\n", oncemill.VerdictOf(err), err)
	}
}
