package payment_test

import (
	"bufio"
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill/consumers/payment"
	"github.com/oncemill/oncemill/testcontainers/internal/cache"
)

// stripe-mock is Stripe's own check of requests against its OpenAPI description. It
// knows no idempotency keys and keeps nothing.
const stripeMockVersion = "v0.203.0"

// stripeMock returns the path of the program, which is built once.
func stripeMock(t *testing.T) string {
	t.Helper()
	path, unlock, err := cache.Prepare("stripe-mock/" + stripeMockVersion + "/stripe-mock")
	must(t, err)
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path
	}
	t.Logf("building stripe-mock %s, once ...", stripeMockVersion)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "install", "github.com/stripe/stripe-mock@"+stripeMockVersion)
	build.Dir = os.TempDir()
	build.Env = append(os.Environ(), "GOBIN="+filepath.Dir(path), "GOFLAGS=", "GOOS=", "GOARCH=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go install stripe-mock: %v\n%s", err, out)
	}
	return path
}

// startStripeMock returns the URL of a stripe-mock that ends with the test.
func startStripeMock(t *testing.T) string {
	t.Helper()
	mock := exec.Command(stripeMock(t), "-http-addr", "127.0.0.1:0")
	out, err := mock.StdoutPipe()
	must(t, err)
	mock.Stderr = mock.Stdout
	must(t, mock.Start())
	t.Cleanup(func() {
		_ = mock.Process.Kill()
		_ = mock.Wait()
	})
	lines := make(chan string, 100)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				t.Fatal("stripe-mock has ended")
			}
			if _, address, ok := strings.Cut(line, "Listening for HTTP at address: "); ok {
				go func() {
					for range lines {
					}
				}()
				return "http://" + strings.TrimSpace(address)
			}
		case <-time.After(time.Minute):
			t.Fatal("stripe-mock does not say where it listens")
		}
	}
}

// What we send is what Stripe's description of its API allows.
func TestRequestsAreWhatStripeDescribes(t *testing.T) {
	t.Parallel()
	s := &payment.Stripe{APIKey: "sk_test_123", BaseURL: startStripeMock(t)}
	t.Cleanup(s.Close)
	must(t, (&payment.Charger{Provider: s}).Check(within(t)))
	full := order
	full.Customer, full.Description = "cus_7", "order 7"
	now := time.Now()
	for name, r := range map[string]payment.Request{
		"charge":             order,
		"charge, all fields": full,
		"refund":             {Kind: payment.Refund, Payment: "pi_1", Amount: 50, Currency: "usd", Metadata: map[string]string{"order": "7"}},
		"refund of a charge": {Kind: payment.Refund, Payment: "ch_1", Amount: 50, Currency: "usd"},
	} {
		// It takes the request, and answers with its example object.
		_, err := s.Execute(within(t), key, r)
		wantVerdict(t, err, unknown)
		if err == nil || !strings.Contains(err.Error(), "not about our payment") {
			t.Errorf("%s: got %v", name, err)
		}
		_, err = s.Find(within(t), payment.Search{Key: key, Request: &r, From: now.Add(-time.Hour), To: now})
		wantVerdict(t, err, notHappened)
		if !errors.Is(err, payment.ErrNotFound) {
			t.Errorf("%s: find: %v", name, err)
		}
	}
	_, err := s.Find(within(t), payment.Search{Key: key, From: now.Add(-time.Hour), To: now})
	if !errors.Is(err, payment.ErrNotFound) {
		t.Errorf("find by the key alone: %v", err)
	}
	if status := post(t, s.BaseURL+"/v1/payment_intents/pi_1/cancel", s.APIKey, "cancellation_reason=abandoned"); status != http.StatusOK {
		t.Errorf("cancel: HTTP %d", status)
	}
	// And what the description does not allow is refused, so that this test can fail.
	for _, form := range []string{"amount=1050&currency=usd&nonsense=1", "amount=much&currency=usd", "currency=usd"} {
		if status := post(t, s.BaseURL+"/v1/payment_intents", s.APIKey, form); status != http.StatusBadRequest {
			t.Errorf("%s: HTTP %d", form, status)
		}
	}
}

func post(t *testing.T, url, apiKey, form string) (status int) {
	t.Helper()
	r, err := http.NewRequestWithContext(within(t), http.MethodPost, url, strings.NewReader(form))
	must(t, err)
	r.Header.Set("Authorization", "Bearer "+apiKey)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
	must(t, err)
	must(t, resp.Body.Close())
	return resp.StatusCode
}
