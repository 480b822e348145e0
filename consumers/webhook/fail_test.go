package webhook_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/webhook"
	"github.com/oncemill/oncemill/internal/testenv"
)

// A line connects to Postgres, or does not.
type line struct {
	driver.Connector
	down atomic.Bool
}

func (l *line) Connect(ctx context.Context) (driver.Conn, error) {
	if l.down.Load() {
		return nil, errors.New("the line is down")
	}
	return l.Connector.Connect(ctx)
}

// wantAgain wants an answer that has the provider deliver again.
func (s *site) wantAgain(w *httptest.ResponseRecorder, what string) {
	s.t.Helper()
	s.wantStatus(w, http.StatusServiceUnavailable, what)
	if w.Header().Get("Retry-After") == "" {
		s.t.Errorf("%s: no Retry-After", what)
	}
}

// While Postgres is away every event is answered with 503, and the redelivery stores it.
func TestPostgresIsAway(t *testing.T) {
	t.Parallel()
	for _, provider := range []string{"stripe", "github", "twilio"} {
		t.Run(provider, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			connector, err := pq.NewConnector(testenv.PostgresURL(t))
			must(t, err)
			l := &line{Connector: connector}
			db := sql.OpenDB(l)
			t.Cleanup(func() { db.Close() })
			s.db, s.inbox = db, &oncemill.Inbox{DB: db}
			g := s.good()[provider]
			l.down.Store(true)
			s.wantAgain(deliver(g.receiver, g.d), "no connection")
			l.down.Store(false)
			s.wantStored(0)
			s.wantStatus(deliver(g.receiver, g.d), 200, "the redelivery")
			s.wantStored(1)

			// And once again when there were connections, which are closed now.
			l.down.Store(true)
			db.SetMaxIdleConns(-1)
			s.wantAgain(deliver(g.receiver, g.d), "no connection any more")
			l.down.Store(false)
			s.wantStatus(deliver(g.receiver, g.d), 200, "a duplicate")
			s.wantStored(1)
		})
	}
}

func TestAClosedDatabase(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	closed, err := sql.Open("postgres", "postgres://127.0.0.1:1/x")
	must(t, err)
	must(t, closed.Close())
	inbox := s.inbox
	s.inbox = &oncemill.Inbox{DB: closed}
	s.wantAgain(deliver(s.github(), fromGitHub(githubSecret, `{}`, "guid")), "closed")
	s.inbox = inbox
	s.wantStatus(deliver(s.github(), fromGitHub(githubSecret, `{}`, "guid")), 200, "the redelivery")
	s.wantStored(1)
}

// blocked has a delivery wait for the outbox, and calls during while it does.
func (s *site) blocked(h http.Handler, r *http.Request, during func(pid int)) *httptest.ResponseRecorder {
	s.t.Helper()
	tx, err := s.db.BeginTx(within(s.t), nil)
	must(s.t, err)
	defer tx.Rollback()
	_, err = tx.Exec(`LOCK TABLE oncemill.outbox IN ACCESS EXCLUSIVE MODE`)
	must(s.t, err)
	w := httptest.NewRecorder()
	var wg sync.WaitGroup
	wg.Go(func() { h.ServeHTTP(w, r) })
	var pid int
	for err = sql.ErrNoRows; errors.Is(err, sql.ErrNoRows); { // Postgres gives no signal
		err = s.db.QueryRowContext(within(s.t), `
			SELECT pid FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&pid)
	}
	must(s.t, err)
	during(pid)
	must(s.t, tx.Rollback())
	wg.Wait()
	return w
}

// The connection is killed when the event is claimed and not committed.
func TestAConnectionThatIsKilled(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	d := fromGitHub(githubSecret, `{}`, "guid")
	w := s.blocked(s.github(), d.request(), func(pid int) {
		_, err := s.db.Exec(`SELECT pg_terminate_backend($1, 60000)`, pid)
		must(t, err)
	})
	s.wantAgain(w, "killed")
	s.wantStored(0)
	s.wantStatus(deliver(s.github(), d), 200, "the redelivery")
	s.wantStored(1)
}

// Storing an event takes no longer than Timeout, and is undone then.
func TestPostgresIsTooSlow(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	d := fromGitHub(githubSecret, `{}`, "guid")
	receiver := s.github()
	receiver.Timeout = 2 * time.Second
	var w *httptest.ResponseRecorder
	answered := make(chan struct{})
	h := http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		w = deliver(receiver, d)
		close(answered)
	})
	s.blocked(h, d.request(), func(int) { <-answered }) // the outbox stays locked until it gives up
	s.wantAgain(w, "too slow")
	s.wantStored(0)
	s.wantStatus(deliver(s.github(), d), 200, "the redelivery")
	s.wantStored(1)
}

// A provider that hangs up does not undo what is under way.
func TestAProviderThatHangsUp(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	d := fromGitHub(githubSecret, `{}`, "guid")
	ctx, hangUp := context.WithCancel(context.Background())
	s.blocked(s.github(), d.request().WithContext(ctx), func(int) { hangUp() })
	s.wantStored(1)
	s.wantStatus(deliver(s.github(), d), 200, "the redelivery")
	s.wantStored(1)
}

// A delivery whose event another process is storing is told to come again, if that takes
// too long.
func TestAnEventThatIsInFlightElsewhere(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.inbox = &oncemill.Inbox{DB: s.db, LockWait: 50 * time.Millisecond}
	d := fromGitHub(githubSecret, `{}`, "guid")
	w := s.blocked(s.github(), d.request(), func(int) {
		other := &site{t: t, db: s.db, inbox: &oncemill.Inbox{DB: s.db, LockWait: 50 * time.Millisecond}, log: s.log}
		s.wantAgain(deliver(other.github(), d), "in flight in another process")
		s.wantAgain(deliver(s.github(), d), "in flight in this process")
	})
	s.wantStatus(w, 200, "the first delivery")
	s.wantStatus(deliver(s.github(), d), 200, "the redelivery")
	s.wantStored(1)
}

// What the outbox refuses is not claimed either.
func TestAnEventThatCannotBeStored(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	_, err := s.db.Exec(`ALTER TABLE oncemill.outbox ADD CONSTRAINT never CHECK (topic <> 'events')`)
	must(t, err)
	d := fromGitHub(githubSecret, `{}`, "guid")
	s.wantStatus(deliver(s.github(), d), 500, "refused")
	s.wantStored(0)
	_, err = s.db.Exec(`ALTER TABLE oncemill.outbox DROP CONSTRAINT never`)
	must(t, err)
	s.wantStatus(deliver(s.github(), d), 200, "the redelivery")
	s.wantStored(1)
}

// The answer is lost after the commit: the redelivery gets 200 and stores nothing.
func TestALostReply(t *testing.T) {
	t.Parallel()
	for _, provider := range []string{"stripe", "github", "twilio"} {
		t.Run(provider, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			g := s.good()[provider]
			var lost atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				g.receiver.ServeHTTP(lossy{w, lost.Add(1) <= 2}, r)
			}))
			defer server.Close()
			codes := make([]int, 0, 4)
			for range cap(codes) {
				r, err := http.NewRequestWithContext(within(t), "POST", server.URL+g.d.target, strings.NewReader(g.d.body))
				must(t, err)
				r.Header = g.d.header.Clone()
				response, err := server.Client().Do(r)
				if err != nil {
					codes = append(codes, 0)
					s.wantStored(1)
					continue
				}
				response.Body.Close()
				codes = append(codes, response.StatusCode)
			}
			if codes[0] != 0 || codes[1] != 0 || codes[2] != 200 || codes[3] != 200 {
				t.Errorf("answered %v, want two answers lost and two 200", codes)
			}
			s.wantStored(1)
		})
	}
}

// lossy breaks the connection in place of the answer.
type lossy struct {
	http.ResponseWriter
	loses bool
}

func (l lossy) Write(p []byte) (int, error) {
	if l.loses {
		panic(http.ErrAbortHandler)
	}
	return l.ResponseWriter.Write(p)
}

// Whatever is wrong is found at start, by the name of its field, and a receiver that runs
// in spite of it stores nothing.
func TestAWrongReceiverIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for want, receiver := range map[string]http.Handler{
		"Stripe.Inbox is nil":                &webhook.Stripe{Topic: "t", Secrets: []string{"s"}},
		"Stripe.Topic is empty":              &webhook.Stripe{Inbox: s.inbox, Secrets: []string{"s"}},
		"Stripe.Secrets is empty":            &webhook.Stripe{Inbox: s.inbox, Topic: "t"},
		"Stripe.Secrets[1] is empty":         &webhook.Stripe{Inbox: s.inbox, Topic: "t", Secrets: []string{"s", ""}},
		"Stripe.Secrets[0] begins or ends":   &webhook.Stripe{Inbox: s.inbox, Topic: "t", Secrets: []string{"s\n"}},
		"Stripe.Secrets[0] is an API key":    &webhook.Stripe{Inbox: s.inbox, Topic: "t", Secrets: []string{"sk_live_1"}},
		"Stripe.ReplayWindow is -1s":         &webhook.Stripe{Inbox: s.inbox, Topic: "t", Secrets: []string{"s"}, ReplayWindow: -time.Second},
		"Stripe.ReplayWindow is 200h0m0s":    &webhook.Stripe{Inbox: s.inbox, Topic: "t", Secrets: []string{"s"}, ReplayWindow: 200 * time.Hour},
		"Stripe.MostBody is -1":              &webhook.Stripe{Inbox: s.inbox, Topic: "t", Secrets: []string{"s"}, MostBody: -1},
		"Stripe.Timeout is -1s":              &webhook.Stripe{Inbox: s.inbox, Topic: "t", Secrets: []string{"s"}, Timeout: -time.Second},
		"Stripe.Inbox or Consumer is wrong":  &webhook.Stripe{Inbox: s.inbox, Topic: "t", Secrets: []string{"s"}, Consumer: "\xff"},
		"(Inbox.Retention): must be at leas": &webhook.Stripe{Logger: s.logger(), Inbox: &oncemill.Inbox{DB: s.db, Retention: time.Hour}, Topic: "t", Secrets: []string{"s"}},
		"GitHub.Inbox or Consumer is wrong":  &webhook.GitHub{Inbox: &oncemill.Inbox{}, Topic: "t", Secrets: []string{"s"}},
		"GitHub.Topic is \"a\\x00\"":         &webhook.GitHub{Inbox: s.inbox, Topic: "a\x00", Secrets: []string{"s"}},
		"GitHub.Secrets[0] is empty":         &webhook.GitHub{Inbox: s.inbox, Topic: "t", Secrets: []string{""}},
		"GitHub.Inbox keeps claims for 1h":   &webhook.GitHub{Inbox: &oncemill.Inbox{DB: s.db, Retention: time.Hour}, Topic: "t", Secrets: []string{"s"}},
		"Twilio.URL is empty":                &webhook.Twilio{Inbox: s.inbox, Topic: "t", Secrets: []string{"s"}},
		"Twilio.URL cannot be Twilio's":      &webhook.Twilio{Inbox: s.inbox, Topic: "t", Secrets: []string{"s"}, URL: "example.com/hook"},
		"Twilio.URL has a query":             &webhook.Twilio{Inbox: s.inbox, Topic: "t", Secrets: []string{"s"}, URL: "https://example.com/hook?a=1"},
	} {
		err := receiver.(interface{ Check(context.Context) error }).Check(within(t))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		s.wantStatus(deliver(receiver, fromGitHub("", `{}`, "guid")), 500, want)
	}
	s.wantStored(0)
}

func TestCheckLooksAtTheDatabase(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, good := range []interface{ Check(context.Context) error }{s.stripe(), s.github(), s.twilio()} {
		must(t, good.Check(within(t)))
	}
	s.inbox = &oncemill.Inbox{DB: testenv.Open(t, testenv.EmptyPostgresURL(t))}
	for _, bad := range []interface{ Check(context.Context) error }{s.stripe(), s.github(), s.twilio()} {
		if err := bad.Check(within(t)); !errors.Is(err, oncemill.ErrSchema) {
			t.Errorf("got %v", err)
		}
	}
	s.wantAgain(deliver(s.github(), fromGitHub(githubSecret, `{}`, "guid")), "no tables")
}
