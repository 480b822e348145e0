package oncemill_test

import (
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
)

// sharing is an Inbox whose claims share statements.
func sharing(db *sql.DB) *oncemill.Inbox { return &oncemill.Inbox{DB: db, ClaimBatch: 64} }

// together runs fn n times at once.
func together(n int, fn func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { fn(i) })
	}
	wg.Wait()
}

func TestClaimBatchIsChecked(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, n := range []int{-1, 1001} {
		wantText(t, (&oncemill.Inbox{DB: f.db, ClaimBatch: n}).Check(within(t)), "Inbox.ClaimBatch", "from 0 to 1000")
	}
	db := testenv.OpenByIndex(t, f.url)
	for _, n := range []int{0, 1, 2, 1000} {
		in := &oncemill.Inbox{DB: db, ClaimBatch: n}
		must(t, in.Check(within(t)))
		must(t, claim(t, in.Consumer("test"), fmt.Sprint(n), oncemill.ClaimOptions{}).Settle(within(t), nil, nil))
	}
}

// The trigger sees what the COMMIT does: it is deferred to there.
func TestASharedClaimIsDurableWhateverTheDatabaseDefaultsTo(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "settings of the connection string")
	f := newFixture(t)
	f.exec(`CREATE TABLE settings (name text)`)
	f.exec(`CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		INSERT INTO settings VALUES (current_setting('synchronous_commit')); RETURN NEW; END $$`)
	f.exec(`CREATE CONSTRAINT TRIGGER note AFTER INSERT ON oncemill.events DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note()`)
	for _, mode := range []struct{ is, want string }{{"off", "on"}, {"local", "on"}, {"remote_write", "on"}, {"on", "on"}, {"remote_apply", "remote_apply"}} {
		for _, driver := range []string{"postgres", "pgx"} {
			f.exec(`ALTER ROLE CURRENT_USER IN DATABASE ` + f.databaseName() + ` SET synchronous_commit = ` + mode.is)
			f.exec(`ALTER ROLE CURRENT_USER IN DATABASE ` + f.databaseName() + ` SET lock_timeout = '77s'`)
			db := f.open(driver, f.url)
			db.SetMaxOpenConns(1)
			c := claim(t, sharing(db).Consumer("test"), driver+mode.is, oncemill.ClaimOptions{})
			must(t, c.Settle(within(t), nil, nil))
			if n := f.count(`SELECT count(*) FROM settings WHERE name = $1`, mode.want); n != 2 {
				t.Errorf("synchronous_commit = %s by default: %d of 2 commits were made with %s", mode.is, n, mode.want)
			}
			f.exec(`DELETE FROM settings`)
			var synchronous, lock string
			must(t, db.QueryRow(`SELECT current_setting('synchronous_commit'), current_setting('lock_timeout')`).Scan(&synchronous, &lock))
			if synchronous != mode.is || lock != "77s" {
				t.Errorf("the session was left with synchronous_commit = %s, lock_timeout = %s", synchronous, lock)
			}
			db.Close()
		}
	}
}

// A statement that cannot be committed has answered with its rows before.
func TestASharedClaimThatCannotBeCommittedIsNone(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"postgres", "pgx"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.exec(`CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				IF NEW.key LIKE 'no%' THEN RAISE EXCEPTION 'no'; END IF; RETURN NULL; END $$`)
			f.exec(`CREATE CONSTRAINT TRIGGER no AFTER INSERT ON oncemill.claims DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION no()`)
			c := sharing(f.open(driver, f.url)).Consumer("test")
			together(64, func(i int) {
				key := fmt.Sprint("yes", i)
				if i%8 == 0 {
					key = fmt.Sprint("no", i)
				}
				got, err := c.Claim(within(t), key, oncemill.ClaimOptions{Agent: strings.Repeat("long enough for the answer to be sent in parts", 10)})
				switch {
				case i%8 == 0 && err == nil:
					t.Errorf("%s is claimed, with token %d, by nobody's COMMIT", key, got.Token())
				case i%8 != 0 && err != nil:
					t.Errorf("%s is refused because of another: %v", key, err)
				}
			})
			if n := f.count(`SELECT count(*) FROM oncemill.claims`); n != 56 {
				t.Errorf("%d claims, want 56", n)
			}
		})
	}
}

func TestSharedClaimsHaveOneHolder(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	processes := [2]*oncemill.Consumer{sharing(f.open("postgres", f.url)).Consumer("test"), sharing(f.open("pgx", f.url)).Consumer("test")}
	for _, c := range processes {
		c.Inbox().DB.SetMaxOpenConns(8)
		c.Inbox().DB.SetMaxIdleConns(8)
	}
	const keys, callers = 12, 64
	var mu sync.Mutex
	got := map[string][]int64{}
	together(keys*callers, func(i int) {
		key := fmt.Sprint("key ", i%keys)
		claim, err := processes[i/keys%2].Claim(within(t), key, oncemill.ClaimOptions{Patient: true})
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err == nil:
			got[key] = append(got[key], claim.Token())
		case !errors.Is(err, oncemill.ErrInFlight):
			t.Error(err)
		}
	})
	for i := range keys {
		key := fmt.Sprint("key ", i)
		if len(got[key]) != 1 {
			t.Errorf("%s: claimed with tokens %v, want one", key, got[key])
			continue
		}
		if n := f.count(`SELECT count(*) FROM oncemill.claims WHERE key = $1 AND token = $2`, key, got[key][0]); n != 1 {
			t.Errorf("%s: the claim of token %d is not there", key, got[key][0])
		}
		f.wantEvents(key, oncemill.EventClaimed)
	}
}

// ledger knows who makes an effect.
type ledger struct {
	t       *testing.T
	mu      sync.Mutex
	holders map[string]int64 // 0: nobody; -1: the effect has happened
	tokens  map[int64]bool
}

func (l *ledger) begin(c *oncemill.Claim) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if holder := l.holders[c.Key()]; holder != 0 {
		l.t.Errorf("%s: token %d begins while the holder is %d", c.Key(), c.Token(), holder)
	}
	if l.tokens[c.Token()] {
		l.t.Errorf("%s: token %d comes twice", c.Key(), c.Token())
	}
	l.holders[c.Key()], l.tokens[c.Token()] = c.Token(), true
}

func (l *ledger) end(c *oncemill.Claim, as int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.holders[c.Key()] != c.Token() {
		l.t.Errorf("%s: token %d ends, but the holder is %d", c.Key(), c.Token(), l.holders[c.Key()])
	}
	l.holders[c.Key()] = as
}

func TestSharedClaimsReleasedAndClaimedAgainHaveOneHolder(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	l := &ledger{t: t, holders: map[string]int64{}, tokens: map[int64]bool{}}
	processes := [3]*oncemill.Consumer{sharing(f.open("postgres", f.url)).Consumer("test"), sharing(f.open("pgx", f.url)).Consumer("test"),
		(&oncemill.Inbox{DB: f.db}).Consumer("test")}
	for _, c := range processes {
		c.Inbox().DB.SetMaxOpenConns(8)
		c.Inbox().DB.SetMaxIdleConns(8)
	}
	const keys = 24
	together(96, func(i int) {
		random := rand.New(rand.NewPCG(1, uint64(i)))
		for range 12 {
			c, err := processes[i%3].Claim(within(t), fmt.Sprint("key ", random.IntN(keys)), oncemill.ClaimOptions{Patient: true})
			switch {
			case errors.Is(err, oncemill.ErrInFlight) || errors.Is(err, oncemill.ErrSettled) || errors.Is(err, oncemill.ErrInDoubt):
				continue
			case err != nil:
				t.Error(err)
				continue
			}
			l.begin(c)
			switch random.IntN(40) {
			case 0: // after that, nobody gets it
				l.end(c, -1)
				if err := c.Settle(within(t), []byte("r"), nil); err != nil {
					t.Error(err)
				}
			case 1: // in doubt, settled late, by another process
				if err := c.Doubt(within(t), "", nil); err != nil {
					t.Error(err)
				}
				l.end(c, -1)
				if err := processes[(i+1)%3].Resume(c.Key(), c.Token()).Settle(within(t), nil, nil); err != nil {
					t.Error(err)
				}
			default:
				l.end(c, 0)
				if err := c.Release(within(t), ""); err != nil {
					t.Error(err)
				}
			}
		}
	})
	f.wantAlternatingEvents()
}

// wantAlternatingEvents checks that after each claim its own end comes first.
func (f *fixture) wantAlternatingEvents() {
	f.t.Helper()
	rows, err := f.db.Query(`SELECT key, kind, token FROM oncemill.events WHERE kind IN ('claimed', 'released', 'settled', 'refused') ORDER BY key, id`)
	must(f.t, err)
	defer rows.Close()
	type state struct {
		kind  string
		token int64
	}
	last := map[string]state{}
	n := 0
	for rows.Next() {
		var key string
		var now state
		must(f.t, rows.Scan(&key, &now.kind, &now.token))
		before := last[key]
		begins := now.kind == "claimed" && (before.kind == "" || before.kind == "released")
		ends := (now.kind == "released" || now.kind == "settled") && before.kind == "claimed" && now.token == before.token
		if !begins && !ends {
			f.t.Errorf("%s: after %+v came %+v", key, before, now)
		}
		last[key] = now
		n++
	}
	must(f.t, rows.Err())
	if n < 100 {
		f.t.Errorf("only %d events: this test has tested nothing", n)
	}
}

func TestSharedClaimsWithOneConnection(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"postgres", "pgx"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			db := f.open(driver, f.url)
			db.SetMaxOpenConns(1)
			c := sharing(db).Consumer("test")
			together(50, func(i int) {
				claim, err := c.Claim(within(t), fmt.Sprint(i), oncemill.ClaimOptions{})
				if err == nil && i%2 == 0 {
					err = claim.Settle(within(t), nil, nil)
				} else if err == nil {
					err = claim.Settle(within(t), nil, effect("row")) // in a transaction of its own
				}
				if err != nil {
					t.Error(err)
				}
			})
			f.wantEffects("row", 25)
		})
	}
}

// Whoever parks has found the claim in doubt, which its holder does not know.
func TestASharedSettlementDeletesWhatWasParkedMeanwhile(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := sharing(f.db).Consumer("test")
	first := claim(t, c, "k", oncemill.ClaimOptions{})
	f.expire("k")
	tx, err := f.db.Begin()
	must(t, err)
	defer tx.Rollback()
	for _, query := range []string{`SELECT FROM oncemill.claims WHERE key = 'k' FOR UPDATE`,
		`UPDATE oncemill.claims SET in_doubt_since = lease_until WHERE key = 'k'`,
		`INSERT INTO oncemill.parked (consumer, key, topic, uuid, metadata, payload) VALUES ('test', 'k', 't', 'old', '{}', 'p')`} {
		_, err = tx.Exec(query)
		must(t, err)
	}
	done := make(chan error, 1)
	go func() { done <- first.Settle(within(t), nil, nil) }()
	f.waiting(1)
	must(t, tx.Commit())
	must(t, <-done)
	if n := f.count(`SELECT count(*) FROM oncemill.parked`); n != 0 {
		t.Errorf("%d parked messages are left of a settled claim, for ever", n)
	}
}

func TestASharedSettlementDeletesWhatWasParkedBefore(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := sharing(f.db).Consumer("test")
	first := claim(t, c, "k", oncemill.ClaimOptions{})
	must(t, first.Doubt(within(t), "lost", &oncemill.ParkedMessage{Topic: "t"}))
	second := claim(t, c, "k", oncemill.ClaimOptions{KeyLifetime: time.Hour})
	must(t, second.Settle(within(t), nil, nil))
	if n := f.count(`SELECT count(*) FROM oncemill.parked`); n != 0 {
		t.Errorf("%d parked messages are left of a settled claim, for ever", n)
	}
	want(t, first.Settle(within(t), nil, nil), oncemill.ErrFenced)
	must(t, second.Settle(within(t), nil, nil)) // its answer was lost
	f.wantEvents("k", oncemill.EventClaimed, oncemill.EventInDoubt, oncemill.EventTakenOver, oncemill.EventSettled, oncemill.EventRefused)
}

// Plans that are made while the table is small serve it when it is large, and nobody has
// analyzed it yet.
func TestSharedStatementsReadNoWholeTable(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "PlanByIndex sets enable_seqscan for the session")
	f := newFixture(t)
	f.exec(`ALTER TABLE oncemill.claims SET (autovacuum_enabled = off)`)
	db := testenv.OpenByIndex(t, f.url)
	db.SetMaxOpenConns(2)
	db.SetMaxIdleConns(2)
	in := sharing(db)
	must(t, in.Check(within(t)))
	wantText(t, sharing(f.db).Check(within(t)), "Inbox.ClaimBatch", "PlanByIndex", "0")
	c := in.Consumer("test")
	round := func(n int) {
		for i := range 12 {
			together(16, func(j int) {
				claim, err := c.Claim(within(t), fmt.Sprint(n, " ", i, " ", j), oncemill.ClaimOptions{})
				if err == nil {
					err = claim.Settle(within(t), nil, nil)
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
	}
	round(1)
	f.exec(`INSERT INTO oncemill.claims (consumer, key) SELECT 'test', 'old ' || i FROM generate_series(1, 20000) i`)
	round(2)
	db.Close() // which has the sessions write down what they have read
	ctx := within(t)
	for f.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`) > 0 && ctx.Err() == nil {
	}
	if n := f.count(`SELECT seq_tup_read FROM pg_stat_user_tables WHERE schemaname = 'oncemill' AND relname = 'claims'`); n > 20000 {
		t.Errorf("%d rows were read one after the other", n)
	}
}
