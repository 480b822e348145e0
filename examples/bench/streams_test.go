package main_test

import (
	"strings"
	"testing"

	main "github.com/oncemill/oncemill/examples/bench"
	"github.com/oncemill/oncemill/testcontainers/natsserver"
)

// A message that is missing in a stream, or there twice, or one too many, is found out.
func TestStreamsAreCounted(t *testing.T) {
	t.Parallel()
	b := broker(t)
	for _, test := range []struct {
		name, uuids, want string
	}{
		{"right", "a b c", ""},
		{"lost", "a b", "2 messages in stream lost, want 3"},
		{"twice", "a b c c", "4 messages in stream twice, want 3"},
		{"instead", "a b b", "2 different messages in stream instead, want 3"},
	} {
		must(t, b.Create(t.Context(), test.name))
		for _, uuid := range strings.Fields(test.uuids) {
			must(t, b.Publish(t.Context(), test.name, uuid))
		}
		err := b.CheckStream(t.Context(), test.name, 3)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: got %v", test.uuids, err)
		}
	}
}

// A message that a worker has not acknowledged is found out.
func TestMessagesMustBeAcknowledged(t *testing.T) {
	t.Parallel()
	b := broker(t)
	must(t, b.Create(t.Context(), "work"))
	for _, uuid := range []string{"a", "b"} {
		must(t, b.Publish(t.Context(), "work", uuid))
	}
	subscriber := b.Subscriber()
	defer subscriber.Close()
	messages, err := subscriber.Subscribe(t.Context(), "work")
	must(t, err)
	(<-messages).Ack()
	last := <-messages
	if err := b.CheckAcked(t.Context(), "work"); err == nil || !strings.Contains(err.Error(), "1 messages are not acknowledged") {
		t.Errorf("got %v", err)
	}
	last.Ack()
	must(t, b.CheckAcked(t.Context(), "work"))
}

func broker(t *testing.T) main.Broker {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a server: make test")
	}
	server, err := natsserver.Embed()
	must(t, err)
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	b, err := main.Connect(server.URL())
	must(t, err)
	t.Cleanup(b.Close)
	return b
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
