package main_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/payment"
	main "github.com/oncemill/oncemill/testcontainers/cmd/stripeserver"
)

func TestPaymentsCanBeTriedByHand(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	ledger := filepath.Join(t.TempDir(), "ledger")
	output, stdout := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- main.Run(ctx, []string{"-addr", "127.0.0.1:0", "-ledger", ledger, "-lose-replies"}, stdout, io.Discard)
		stdout.Close()
	}()
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatal(err, <-done)
	}
	var url, key string
	if _, err := fmt.Sscanf(line, "BaseURL %s APIKey %s", &url, &key); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	stripe := &payment.Stripe{APIKey: strings.TrimSuffix(key, ","), BaseURL: url}
	defer stripe.Close()
	for _, want := range []oncemill.Verdict{oncemill.Unknown, oncemill.Happened} {
		_, err := stripe.Execute(ctx, "om-1", payment.Request{Amount: 1050, Currency: "usd", PaymentMethod: "pm_card_visa"})
		if oncemill.VerdictOf(err) != want {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(ledger); err != nil || strings.Count(string(text), "\n") != 1 {
		t.Errorf("the ledger is %q (%v), want one payment", text, err)
	}
}
