package consumers_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/middleware"
)

// starts runs a router with a handler of a topic until it is running, and returns what the
// Inbox and the subscriber have logged.
func (s *system) starts(group, topic string, kept time.Duration) *testenv.Log {
	var log testenv.Log
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	must(s.t, err)
	sub := s.subscriber(group)
	sub.Logger = log.Logger()
	router.AddConsumerHandler(group, topic, sub, func(*message.Message) error { return nil })
	in := &oncemill.Inbox{DB: s.db, Retention: kept, Logger: log.Logger()}
	must(s.t, consumers.Stack{Once: middleware.Once{Inbox: in}}.Apply(within(s.t), router))
	stop := until(s.t, router.Run)
	<-router.Running()
	stop()
	return &log
}

// It is known before the first message, and said once, however many handlers read the
// stream.
func TestRetentionShorterThanTheStreamIsWarnedOfAtStart(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	stream := s.stream()
	name := stream.CachedInfo().Config.Name
	log := s.starts("first", s.topic("orders"), 48*time.Hour)
	found := fmt.Sprintf(`oncemill: stream \"%s\" keeps messages for ever, claims are kept for 2 days`, name)
	for _, words := range []string{found, "check=retention", "its effects happen again", "nats stream edit " + name + " --max-age 48h; or raise Inbox.Retention"} {
		if log.Count(words) != 1 {
			t.Errorf("want one %q in\n%s", words, log.String())
		}
	}
	if again := s.starts("second", s.topic("orders"), 48*time.Hour); again.Count("check=retention") > 0 {
		t.Errorf("it is said twice:\n%s", again.String())
	}

	config := stream.CachedInfo().Config
	config.MaxAge = 72 * time.Hour
	_, err := s.js.UpdateStream(t.Context(), config)
	must(t, err)
	if log := s.starts("third", s.topic("orders"), 48*time.Hour); log.Count("keeps messages for 3 days, claims are kept for 2 days") != 1 {
		t.Errorf("no warning of three days in\n%s", log.String())
	}
	if log := s.starts("fourth", s.topic("orders"), 96*time.Hour); log.Count("check=retention") > 0 {
		t.Errorf("claims that are kept for longer are warned of:\n%s", log.String())
	}
}

// By default claims are kept for a week.
func TestADefaultRetentionIsComparedToo(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	if log := s.starts("orders", s.topic("orders"), 0); log.Count("keeps messages for ever, claims are kept for 7 days") != 1 {
		t.Error(log.String())
	}
}

func TestAStackWarnsOfSynchronousCommitOffAtStart(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "settings of the connection string")
	url := testenv.PostgresURL(t)
	var log testenv.Log
	in := &oncemill.Inbox{DB: testenv.Open(t, url+"&synchronous_commit=off"), Logger: log.Logger()}
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	must(t, err)
	must(t, consumers.Stack{Once: middleware.Once{Inbox: in}}.Apply(within(t), router))
	if log.Count(`msg="oncemill: synchronous_commit is off`) != 1 {
		t.Error(log.String())
	}
}
