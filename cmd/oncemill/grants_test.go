package main_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/lib/pq"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/guard"
	"github.com/oncemill/oncemill/internal/doctor"
	"github.com/oncemill/oncemill/internal/grants"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

// A granted is a fresh database where one role of docs/operating.md works.
type granted struct {
	t     *testing.T
	admin *sql.DB
	db    *sql.DB // as the role
	url   string  // of the role
	role  string  // its name, quoted
	n     atomic.Int64
}

// sqlOf returns the statements of a role in docs/operating.md.
func sqlOf(t *testing.T, role doctor.Role) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/operating.md")
	must(t, err)
	block := regexp.MustCompile("(?s)```sql\nCREATE ROLE oncemill_" + string(role) + " LOGIN.*?;\n(.*?)```").FindSubmatch(page)
	if block == nil {
		t.Fatalf("docs/operating.md has no statements for the role %s", role)
	}
	return string(block[1])
}

// newGranted makes the role first: it can only be dropped after what it has.
func newGranted(t *testing.T, role doctor.Role, create func(testing.TB) string) *granted {
	t.Helper()
	create(t) // only where there are servers
	server := testenv.Open(t, os.Getenv(testenv.PostgresVariable))
	name := "oncemill_" + string(role) + "_" + strings.ToLower(watermill.NewULID())
	exec := func(db *sql.DB, statements string) {
		t.Helper()
		if _, err := db.Exec(statements); err != nil {
			t.Fatalf("%s: %v", statements, err)
		}
	}
	exec(server, `CREATE ROLE `+name+` LOGIN PASSWORD 'hunter2'`)
	t.Cleanup(func() {
		if _, err := server.Exec(`DROP ROLE ` + name); err != nil {
			t.Error(err)
		}
	})
	address := create(t)
	u, err := url.Parse(address)
	must(t, err)
	g := &granted{t: t, admin: testenv.Open(t, address), role: name}
	statements := strings.ReplaceAll(sqlOf(t, role), "oncemill_"+string(role), name)
	exec(g.admin, strings.ReplaceAll(statements, "DATABASE app", "DATABASE "+strings.TrimPrefix(u.Path, "/")))
	u.User = url.UserPassword(name, "hunter2")
	g.url = u.String()
	g.db = testenv.Open(t, g.url)
	return g
}

// statements give the role a grant, and take it away.
func (g *granted) statements(grant grants.Grant) (give, take string) {
	give = strings.TrimSuffix((grants.List{grant}).SQL("", g.role), ";")
	return give, strings.Replace(strings.Replace(give, "GRANT", "REVOKE", 1), " TO ", " FROM ", 1)
}

func (g *granted) key() string { return fmt.Sprint("k", g.n.Add(1)) }

// works are what each role does. They can be repeated, and fail soon.
var works = map[doctor.Role]func(g *granted) error{
	doctor.Producer: (*granted).produce,
	doctor.Worker:   (*granted).work,
	doctor.Effects:  (*granted).effects,
	doctor.Relay:    (*granted).relay,
	doctor.Guard:    (*granted).guard,
	doctor.Operator: (*granted).operate,
	doctor.Reader:   (*granted).look,
}

// The least privileges of docs/operating.md are enough for what each role does, and what
// is taken away is missed, by the role and by the doctor.
func TestEachRoleDoesItsWorkWithItsGrantsAndNotWithLess(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	for role, work := range works {
		t.Run(string(role), func(t *testing.T) {
			t.Parallel()
			g := newGranted(t, role, testenv.PostgresURL)
			if err := work(g); err != nil {
				t.Fatalf("with all of its grants: %v", err)
			}
			for _, grant := range role.Grants(6) {
				give, take := g.statements(grant)
				if _, err := g.admin.Exec(take); err != nil {
					t.Fatalf("%s: %v", take, err)
				}
				err := work(g)
				if err == nil {
					t.Errorf("it does its work as well after %s", take)
				} else if !isDenied(err) {
					t.Errorf("%s: it fails with %v", take, err)
				}
				_, stdout, _ := call(t, map[string]string{"ONCEMILL_DATABASE_URL": g.url}, "doctor", "--role", string(role))
				if !strings.Contains(strings.ReplaceAll(stdout, `"`, ""), give+";") {
					t.Errorf("after %s the doctor does not say %s", take, give)
				}
				if _, err := g.admin.Exec(give); err != nil {
					t.Fatalf("%s: %v", give, err)
				}
			}
			if err := work(g); err != nil {
				t.Errorf("with all of its grants again: %v", err)
			}
		})
	}
}

// Where an operator lacks a right, the error says how to find which.
func TestACommandThatMayNotSaysWhatHelps(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	g := newGranted(t, doctor.Operator, testenv.PostgresURL)
	env := map[string]string{"ONCEMILL_DATABASE_URL": g.url}
	wants := func(says string, args ...string) {
		t.Helper()
		if code, _, stderr := call(t, env, args...); code != 1 || !strings.Contains(stderr, says) {
			t.Errorf("%v: exit code %d, %s", args, code, stderr)
		}
	}
	take := func(grant string) {
		t.Helper()
		_, err := g.admin.Exec(`REVOKE ` + grant + ` FROM ` + g.role)
		must(t, err)
	}
	take(`SELECT ON oncemill.outbox, oncemill.claims`)
	wants("permission denied for table outbox (42501) (`oncemill doctor --role operator`", "outbox")
	wants("permission denied for table outbox (42501) (`oncemill doctor --role operator`", "outbox", "list")
	wants("permission denied for table claims (42501) (`oncemill doctor --role operator`", "claims", "list")
	take(`SELECT ON oncemill.schema_version`)
	wants(`(GRANT SELECT ON "oncemill".schema_version to this role)`, "outbox")
	take(`USAGE ON SCHEMA oncemill`)
	wants(`(GRANT USAGE ON SCHEMA "oncemill" to this role)`, "claims", "list")
}

// The statements of docs/operating.md are those that the doctor gives.
func TestTheGrantsOfTheDocsAreThoseOfTheDoctor(t *testing.T) {
	t.Parallel()
	for role := range works {
		got := strings.TrimSpace(sqlOf(t, role))
		if role == doctor.Reader {
			got = strings.TrimSpace(strings.Replace(got, "GRANT pg_read_all_stats TO oncemill_doctor;", "", 1))
		}
		if want := role.Grants(6).SQL("", "oncemill_"+string(role)); got != want {
			t.Errorf("docs/operating.md says of the role %s\n%s\nbut it needs\n%s", role, got, want)
		}
	}
}

// A role that may create schemas in the database migrates, and the doctor agrees.
func TestTheMigratorNeedsNoMoreThanItsGrants(t *testing.T) {
	t.Parallel()
	g := newGranted(t, doctor.Migrate, testenv.EmptyPostgresURL)
	env := map[string]string{"ONCEMILL_DATABASE_URL": g.url}
	for range 2 {
		if code, _, stderr := call(t, env, "migrate"); code != 0 {
			t.Fatal(stderr)
		}
	}
	_, stdout, _ := call(t, env, "doctor", "--role", "migrate")
	if !strings.Contains(stdout, "may migrate") {
		t.Error(stdout)
	}
	other := newGranted(t, doctor.Migrate, testenv.EmptyPostgresURL)
	_, err := other.admin.Exec(`REVOKE CREATE ON DATABASE ` + other.database() + ` FROM ` + other.role)
	must(t, err)
	if code, _, stderr := call(t, map[string]string{"ONCEMILL_DATABASE_URL": other.url}, "migrate"); code != 1 || !strings.Contains(stderr, `permission denied for database `+other.database()) || !strings.Contains(stderr, `(GRANT CREATE ON DATABASE "`+other.database()+`" TO "`+other.role+`")`) {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

func (g *granted) database() string {
	u, err := url.Parse(g.url)
	must(g.t, err)
	return strings.TrimPrefix(u.Path, "/")
}

// isDenied reports whether an error is that a role may not.
func isDenied(err error) bool {
	var server *pq.Error
	return errors.As(err, &server) && server.Code == "42501" || strings.Contains(err.Error(), "permission denied") || strings.Contains(err.Error(), "may not")
}

// all runs steps one after another, up to the first that fails.
func all(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (g *granted) exec(query string, args ...any) func() error {
	return func() error {
		_, err := g.db.Exec(query, args...)
		return err
	}
}

// An INSERT is a publisher.
func (g *granted) produce() error {
	return all(
		g.exec(`INSERT INTO oncemill.outbox (topic, metadata, payload) VALUES ('orders', '{"tenant": "acme"}', '{}')`),
		g.exec(`INSERT INTO oncemill.scheduled (topic, deliver_after, payload) VALUES ('orders', now() + interval '1 hour', '{}')`),
	)
}

func (g *granted) inbox(batch int) *oncemill.Inbox { return &oncemill.Inbox{DB: g.db, Batch: batch} }

func (g *granted) work() error {
	ctx := context.Background()
	inbox := g.inbox(0)
	consumer := inbox.Consumer("billing")
	publish := func(ctx context.Context, tx oncemill.Tx) error {
		return outbox.InTx(tx).Publish("receipts", message.NewMessage(watermill.NewUUID(), nil))
	}
	return all(
		func() error {
			return consumer.OnceWith(ctx, g.key(), oncemill.ClaimOptions{Origin: time.Now().Add(-time.Hour)}, publish)
		},
		func() error { return g.inbox(8).Consumer("batches").Once(ctx, g.key(), publish) },
		func() error { _, err := consumer.CountError(ctx, g.key(), errors.New("broken")); return err },
		func() error {
			key := g.key()
			return consumer.OnceWith(ctx, key, oncemill.ClaimOptions{Outcome: oncemill.Dead}, func(ctx context.Context, tx oncemill.Tx) error {
				return consumer.GiveUp(ctx, tx, key, "broken")
			})
		},
		func() error { _, err := inbox.Purge(ctx); return err },
		g.exec(`INSERT INTO oncemill.scheduled (topic, deliver_after) VALUES ('reminders', now() + interval '1 hour')`),
		func() error { return inbox.Check(ctx) }, // last: what it asks for is used before
	)
}

// claim makes a claim and has step end it.
func claim(consumer *oncemill.Consumer, key string, options oncemill.ClaimOptions, step func(*oncemill.Claim) error) func() error {
	return func() error {
		c, err := consumer.Claim(context.Background(), key, options)
		if err != nil {
			return err
		}
		return step(c)
	}
}

func (g *granted) effects() error {
	ctx := context.Background()
	inbox := g.inbox(0)
	consumer := inbox.Consumer("mails")
	parked := &oncemill.ParkedMessage{Topic: "mails", UUID: "u"}
	doubtful := g.key()
	return all(
		claim(consumer, g.key(), oncemill.ClaimOptions{Origin: time.Now().Add(-time.Hour)}, func(c *oncemill.Claim) error {
			return errors.Join(c.Extend(ctx, time.Minute), c.Settle(ctx, []byte("sent"), func(_ context.Context, tx oncemill.Tx) error {
				return outbox.InTx(tx).Publish("receipts", message.NewMessage(watermill.NewUUID(), nil))
			}))
		}),
		claim(consumer, g.key(), oncemill.ClaimOptions{}, func(c *oncemill.Claim) error { return c.Release(ctx, "refused") }),
		claim(consumer, g.key(), oncemill.ClaimOptions{}, func(c *oncemill.Claim) error { return c.Fail(ctx, "declined", nil) }),
		claim(consumer, doubtful, oncemill.ClaimOptions{}, func(c *oncemill.Claim) error {
			if err := c.Doubt(ctx, "reply lost", parked); err != nil {
				return err
			}
			return g.resolve(consumer)
		}),
		func() error { _, err := consumer.CountError(ctx, g.key(), errors.New("broken")); return err },
		func() error {
			key := g.key()
			return consumer.OnceWith(ctx, key, oncemill.ClaimOptions{Outcome: oncemill.Dead}, func(ctx context.Context, tx oncemill.Tx) error {
				return consumer.GiveUp(ctx, tx, key, "broken")
			})
		},
		func() error { _, err := inbox.Purge(ctx); return err },
		g.exec(`INSERT INTO oncemill.scheduled (topic, deliver_after) VALUES ('reminders', now() + interval '1 hour')`),
		func() error { return inbox.Check(ctx) }, // last: what it asks for is used before
	)
}

// resolve has a resolver settle what is in doubt.
func (g *granted) resolve(consumer *oncemill.Consumer) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	resolver := &oncemill.Resolver{Consumer: consumer, Poll: 10 * time.Millisecond, LandingBound: time.Millisecond, Ask: func(context.Context, oncemill.InDoubt) (oncemill.Resolution, error) {
		return oncemill.Resolution{Verdict: oncemill.Happened}, nil
	}}
	ended := make(chan error, 1)
	go func() { ended <- resolver.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	for ctx.Err() == nil {
		doubts, err := consumer.Inbox().InDoubt(ctx, "mails", oncemill.InDoubt{}, 1)
		if err != nil || len(doubts) == 0 {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
	return errors.New("not resolved in time")
}

// relay publishes, moves a scheduled message, keeps both and forgets them.
func (g *granted) relay() error {
	log := new(testenv.Log)
	stop, ended := g.startRelay(log)
	err := g.relayed(log, ended)
	return errors.Join(err, stop())
}

// startRelay starts a relay that does all that relays do. ended has the error of a Run that
// has ended by itself.
func (g *granted) startRelay(log *testenv.Log) (stop func() error, ended <-chan error) {
	ctx, cancel := context.WithCancel(context.Background())
	broker := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	relay := &outbox.Relay{
		DB: g.db, Sink: outbox.PublisherSink{Publisher: broker}, ListenURL: g.url, PollInterval: 10 * time.Millisecond,
		Keep: time.Millisecond, Logger: slog.New(slog.NewTextHandler(log, nil)),
	}
	done := make(chan error, 1)
	go func() {
		defer close(done)
		done <- relay.Run(ctx)
	}()
	return func() error {
		cancel()
		err := <-done
		return errors.Join(err, broker.Close())
	}, done
}

// relayed writes messages, and waits until the relay has done all there is to be done for
// them, or complains.
func (g *granted) relayed(log *testenv.Log, ended <-chan error) error {
	if _, err := g.admin.Exec(`
		INSERT INTO oncemill.outbox (topic, ordering_key) VALUES ('orders', 'k'), ('orders', NULL);
		INSERT INTO oncemill.scheduled (topic, deliver_after) VALUES ('orders', now())`); err != nil {
		return err
	}
	for left := 1; left > 0; time.Sleep(5 * time.Millisecond) {
		select {
		case err := <-ended:
			return err
		default:
		}
		if text := log.String(); isDenied(errors.New(text)) {
			return errors.New(text)
		}
		if err := g.admin.QueryRow(`
			SELECT (SELECT count(*) FROM oncemill.outbox) + (SELECT count(*) FROM oncemill.scheduled) + (SELECT count(*) FROM oncemill.published)`).Scan(&left); err != nil {
			return err
		}
	}
	return nil
}

// A relay that runs comes to what it may not do: it is not only what it asks for at start.
func TestARunningRelayUsesEachOfItsGrants(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	g := newGranted(t, doctor.Relay, testenv.PostgresURL)
	for _, grant := range doctor.Relay.Grants(6) {
		if grant.On == "" || grant.On == "schema_version" {
			continue
		}
		log := new(testenv.Log)
		stop, ended := g.startRelay(log)
		if err := g.relayed(log, ended); err != nil {
			t.Fatalf("with all of its grants: %v", err)
		}
		give, take := g.statements(grant)
		_, err := g.admin.Exec(take)
		must(t, err)
		if err := g.relayed(log, ended); err == nil || !strings.Contains(err.Error(), "permission denied for table "+grant.On) {
			t.Errorf("%s: it says %v", take, err)
		}
		must(t, stop())
		_, err = g.admin.Exec(give)
		must(t, err)
	}
}

func (g *granted) guard() error {
	ctx := context.Background()
	h := &guard.Handler{Inbox: &oncemill.Inbox{DB: g.db}, AuditToken: strings.Repeat("a", 32)}
	if err := h.Check(ctx); err != nil {
		return err
	}
	server := httptest.NewServer(h)
	defer server.Close()
	id, released, doubtful := g.key(), g.key(), g.key()
	var token string
	claims := func(id, more string) func() error {
		return func() (err error) {
			token, err = post(server.URL+"/claim", "", `{"request_id":"`+id+`","action":"charge","amount":"1.00","currency":"EUR"`+more+`}`)
			return err
		}
	}
	ends := func(path, body string) func() error {
		return func() error { _, err := post(server.URL+path, token, body); return err }
	}
	consumer := h.Inbox.Consumer("guard")
	return all(
		claims(id, ""), ends("/extend/"+id, `{"lease_seconds":60}`), ends("/settle/"+id, `{"result":{}}`), claims(id, ""),
		claims(released, ""), ends("/release/"+released, `{"reason":"r"}`), claims(released, ""), ends("/fail/"+released, `{"reason":"r"}`),
		claims(doubtful, `,"lease_seconds":0.1`),
		func() error { return g.inDoubt(doubtful) },
		ends("/resolve/"+doubtful, `{"verdict":"not happened","note":"n"}`),
		func() error { return get200(server.URL + "/events") }, func() error { return get200(server.URL + "/audit") },
		func() error { _, err := consumer.NoteDoubts(ctx, time.Time{}); return err },
		func() error { _, err := h.Inbox.Purge(ctx); return err },
	)
}

// inDoubt waits until the lease of a key is over.
func (g *granted) inDoubt(key string) error {
	for over := false; !over; time.Sleep(5 * time.Millisecond) {
		err := g.admin.QueryRow(`SELECT lease_until < now() FROM oncemill.claims WHERE key = $1`, key).Scan(&over)
		if err != nil {
			return err
		}
	}
	return nil
}

// post returns the settlement token, if there is one.
func post(address, token, body string) (string, error) {
	request, err := http.NewRequest(http.MethodPost, address, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	request.Header.Set("X-SafeAgent-Settlement-Token", token)
	request.Header.Set("X-SafeAgent-Audit-Token", strings.Repeat("a", 32))
	return answer(request)
}

func get200(address string) error {
	request, err := http.NewRequest(http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	request.Header.Set("X-SafeAgent-Audit-Token", strings.Repeat("a", 32))
	_, err = answer(request)
	return err
}

func answer(request *http.Request) (token string, err error) {
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	var body struct {
		Token string `json:"settlement_token"`
	}
	switch response.StatusCode {
	case http.StatusOK, http.StatusConflict:
		err = json.NewDecoder(response.Body).Decode(&body)
	case http.StatusServiceUnavailable, http.StatusInternalServerError:
		err = fmt.Errorf("%s: status %d: its database may not be used", request.URL.Path, response.StatusCode)
	default:
		err = fmt.Errorf("%s: status %d", request.URL.Path, response.StatusCode)
	}
	return body.Token, err
}

func (g *granted) operate() error {
	asAdmin := (&oncemill.Inbox{DB: g.admin}).Consumer("payments")
	happened, not := g.key(), g.key()
	for _, key := range []string{happened, not} {
		c, err := asAdmin.Claim(context.Background(), key, oncemill.ClaimOptions{})
		if err != nil {
			return err
		}
		if err := c.Doubt(context.Background(), "reply lost", &oncemill.ParkedMessage{Topic: "payments", UUID: key}); err != nil {
			return err
		}
	}
	if _, err := g.admin.Exec(`
		INSERT INTO oncemill.claims (consumer, key, settled_at) VALUES ('payments', $1, now() - interval '2 hours')`, g.key()); err != nil {
		return err
	}
	if _, err := g.admin.Exec(`
		INSERT INTO oncemill.handler_errors (consumer, key, last_error, last_at) VALUES ('payments', gen_random_uuid()::text, 'broken', now() - interval '2 hours');
		INSERT INTO oncemill.outbox (topic, parked_at) VALUES ('retried', now()), ('dropped', now());
		INSERT INTO oncemill.scheduled (topic, uuid, deliver_after) VALUES ('reminders', 'cancelled', now() + interval '1 hour');
		INSERT INTO oncemill.published (id, dedup_id, topic, uuid, metadata, created_at) VALUES (1, gen_random_uuid(), 'orders', 'u', '{}', now())`); err != nil {
		return err
	}
	command := func(args ...string) func() error {
		return func() error {
			if code, _, stderr := call(g.t, map[string]string{"ONCEMILL_DATABASE_URL": g.url}, args...); code != 0 {
				return errors.New(stderr)
			}
			return nil
		}
	}
	return all(
		command("claims", "--in-doubt"), command("claims", "--blocked"), command("claims", "events", "payments", happened),
		command("claims", "resolve", "--happened", "--note", "n", "payments", happened),
		command("claims", "resolve", "--not-happened", "--note", "n", "payments", not),
		command("claims", "list"), command("claims", "show", "payments", happened),
		command("claims", "purge", "--consumer", "payments", "--older-than", "1h", "--below-retention", "--yes"),
		command("outbox"), command("outbox", "list"), command("outbox", "list", "--scheduled"),
		command("outbox", "retry", "--topic", "retried"), command("outbox", "drop", "--topic", "dropped", "--yes"),
		command("outbox", "cancel", "--uuid", "cancelled"), command("outbox", "replay", "--since", "1h"),
	)
}

// look wants everything to be looked at, whatever is found.
func (g *granted) look() error {
	_, stdout, _ := call(g.t, map[string]string{"ONCEMILL_DATABASE_URL": g.url}, "doctor", "--json")
	for line := range strings.Lines(stdout) {
		var f doctor.Finding
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			return err
		}
		if f.Level == doctor.Skip && f.Check != "grants" || f.Check == "schema" && f.Level != doctor.OK {
			return errors.New(f.Check + ": " + f.Found)
		}
	}
	return nil
}
