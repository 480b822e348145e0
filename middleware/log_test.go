package middleware_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/middleware"
)

// logged has a Guard log into a buffer, to be read when nothing runs.
func (g *guarded) logged() *bytes.Buffer {
	log := new(bytes.Buffer)
	g.inbox.Logger = slog.New(slog.NewTextHandler(log, nil))
	return log
}

func (g *guarded) wantLogged(log *bytes.Buffer, times int, parts ...string) {
	g.t.Helper()
	for _, part := range parts {
		if n := strings.Count(log.String(), part); n != times {
			g.t.Errorf("%q is logged %d times, want %d:\n%s", part, n, times, log)
		}
	}
}

// What is dropped can be seen: a duplicate that was meant to be another message is found
// by that.
func TestGuardLogsADuplicate(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	log := g.logged()
	g.handler = func(*message.Message, *oncemill.Claim) ([]*message.Message, error) { return nil, nil }
	must(t, g.deliver("u"))
	g.wantLogged(log, 0, "duplicate")
	must(t, g.deliver("u"))
	g.wantLogged(log, 1, "level=INFO", "duplicate", "consumer=test", "key=u", "uuid=u", "outcome=settled")
}

func TestGuardLogsTheCommandThatResolves(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	log := g.logged()
	var token int64
	g.handler = func(_ *message.Message, claim *oncemill.Claim) ([]*message.Message, error) {
		token = claim.Token()
		return nil, errLost
	}
	must(t, g.deliver("order 7"))
	g.wantLogged(log, 1, fmt.Sprintf(`command="oncemill claims resolve --token %d test 'order 7'"`, token), oncemill.ProviderKey("test", "order 7"))
}

// A person may say what became of an effect while its worker is still at it.
func TestAWorkerSaysThatItsClaimHasEndedMeanwhile(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	g.handler = func(_ *message.Message, claim *oncemill.Claim) ([]*message.Message, error) {
		g.exec(`UPDATE oncemill.claims SET lease_until = clock_timestamp() - interval '1 second'`)
		return nil, g.inbox.Consumer("test").Resolve(context.Background(), "u", claim.Token(), oncemill.Happened, "seen")
	}
	err := g.deliver("u")
	want(t, err, oncemill.ErrFenced)
	if !strings.Contains(err.Error(), "it has ended meanwhile, as settled") {
		t.Errorf("got %v", err)
	}
}

func TestAMissingUUIDNamesTheFieldToSet(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	msg := message.NewMessage("", nil)
	_, _, _, ofGuard := middleware.Guard{Inbox: f.inbox, Consumer: "test"}.Claim(msg)
	_, _, _, ofOnce := middleware.Once{Inbox: f.inbox, Consumer: "test"}.Claim(msg)
	for says, err := range map[string]error{"or set Guard.Key to": ofGuard, "or set Once.Key to": ofOnce} {
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q", err, says)
		}
	}
}

// lines is where a log goes, line by line.
type lines chan string

func (l lines) Write(line []byte) (int, error) {
	l <- string(line)
	return len(line), nil
}

func TestAResolverThatGivesUpLogsTheCommandThatResolves(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	log := make(lines, 100)
	g.inbox.Logger = slog.New(slog.NewTextHandler(log, nil))
	g.handler = func(*message.Message, *oncemill.Claim) ([]*message.Message, error) { return nil, errLost }
	must(t, g.deliver("order 7"))
	resolver := &oncemill.Resolver{
		Consumer: g.inbox.Consumer("test"), LandingBound: 1, Deadline: 2, Poll: time.Millisecond,
		Ask: func(context.Context, oncemill.InDoubt) (oncemill.Resolution, error) {
			return oncemill.Resolution{}, nil
		},
	}
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- resolver.Run(ctx) }()
	for line := ""; !strings.Contains(line, "stays in doubt"); {
		select {
		case line = <-log:
		case <-ctx.Done():
			t.Fatal("it did not give up")
		}
		if strings.Contains(line, "stays in doubt") {
			held, err := g.inbox.Consumer("test").Held(ctx, "order 7")
			must(t, err)
			if want := fmt.Sprintf(`command="oncemill claims resolve --token %d test 'order 7'"`, held.Token); !strings.Contains(line, want) {
				t.Errorf("logged %s, want %s", line, want)
			}
		}
	}
	stop()
	must(t, <-done)
}
