// Package pubsub runs Watermill's own suite for publishers and subscribers, and
// sees to it that only those of its tests are skipped that are known to be.
package pubsub

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Variable names, in the process that runs the suite, which one it is.
const Variable = "ONCEMILL_TEST_PUBSUB_SUITE"

// Run runs the test TestWatermillSuite of the same package in a process of its
// own, because only its output tells which tests were skipped; those have to be
// the expected ones.
func Run(t *testing.T, name string, expected []string) {
	t.Helper()
	// Compiled anew, without the race detector: TestReconnect has a race of its
	// own, on the list of what it has published.
	command := exec.Command("go", "test", "-run=^TestWatermillSuite$", "-v", "-count=1", "-timeout=5m", ".")
	command.Env = append(os.Environ(), Variable+"="+name)
	output, err := command.CombinedOutput()
	results := resultsIn(output)
	if err != nil {
		t.Errorf("the suite fails: %v\n%s", err, failuresIn(output))
	}
	var skipped []string
	for test, result := range results {
		switch result {
		case "SKIP":
			skipped = append(skipped, test)
		case "FAIL":
			t.Errorf("%s fails", test)
		}
	}
	slices.Sort(skipped)
	if !slices.Equal(skipped, slices.Sorted(slices.Values(expected))) {
		t.Errorf("skipped: %q\nexpected: %q", skipped, expected)
	}
	if passed := len(results) - len(skipped); passed+len(expected) < 16 {
		t.Errorf("only %d tests have passed: %v", passed, results)
	}
}

var resultLine = regexp.MustCompile(`(?m)^\s*--- (PASS|SKIP|FAIL): TestWatermillSuite/(\w+)/\S+ \(`)

// resultsIn returns what became of the suite's tests.
func resultsIn(output []byte) map[string]string {
	results := make(map[string]string)
	for _, match := range resultLine.FindAllSubmatch(output, -1) {
		results[string(match[2])] = string(match[1])
	}
	return results
}

// failuresIn leaves out the thousands of lines that the suite prints when all is
// well.
func failuresIn(output []byte) string {
	var kept []string
	for line := range bytes.Lines(output) {
		text := string(line)
		if strings.Contains(text, "publishing message") || strings.Contains(text, "=== ") || strings.Contains(text, "--- PASS") {
			continue
		}
		kept = append(kept, text)
	}
	return strings.Join(kept[max(0, len(kept)-200):], "")
}

// A Late subscriber delivers a message no sooner than lateness after the broker
// has stored it. TestReconnect notes what it has published when Publish returns,
// and compares as soon as it has received enough; a message that is received
// before that would be one too many.
type Late struct {
	message.Subscriber
	Stored func(*message.Message) time.Time

	relays sync.WaitGroup
}

const lateness = 100 * time.Millisecond

// Subscribe makes Late a message.Subscriber.
func (s *Late) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	messages, err := s.Subscriber.Subscribe(ctx, topic)
	if err != nil {
		return nil, err
	}
	late := make(chan *message.Message)
	s.relays.Go(func() {
		defer close(late)
		for msg := range messages {
			time.Sleep(time.Until(s.Stored(msg).Add(lateness)))
			select {
			case late <- msg:
			case <-msg.Context().Done():
				msg.Nack()
			}
		}
	})
	return late, nil
}

// SubscribeInitialize passes on what the suite asks for.
func (s *Late) SubscribeInitialize(topic string) error {
	return s.Subscriber.(message.SubscribeInitializer).SubscribeInitialize(topic)
}

// Close makes Late a message.Subscriber.
func (s *Late) Close() error {
	defer s.relays.Wait()
	return s.Subscriber.Close()
}
