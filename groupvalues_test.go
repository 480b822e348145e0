package oncemill_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
)

func TestSharedClaimsKeepTheirValues(t *testing.T) {
	t.Parallel()
	odd := []string{`"`, `\`, `\"`, "NULL", "null", "{}", "{a,b}", ",", " ", "\n\t\r", "'", `''`, "$1", "ä€\U0001F600", `\x00`, "\u2028", "a\\", `\\`, "%s", "\x01\x7f"}
	for _, driver := range []string{"postgres", "pgx"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			db := f.open(driver, f.url)
			must(t, oncemill.Migrate(within(t), db, `od"d 'Name`))
			in := &oncemill.Inbox{DB: db, Schema: `od"d 'Name`, ClaimBatch: 64}
			together(len(odd), func(i int) {
				o := odd[i]
				c := in.Consumer("c" + o)
				opts := oncemill.ClaimOptions{
					Fingerprint: []byte(o + "\x00\xff"), Action: o, Agent: o + o, Scope: "s" + o, Amount: "-12.3400", Currency: o,
					Payload: []byte("\x00\xff" + o), Actor: o + "\xff\x00", Lease: time.Hour,
				}
				claim, err := c.Claim(within(t), o+"\x00\xff", opts)
				if err != nil {
					t.Errorf("%q: %v", o, err)
					return
				}
				if time.Until(claim.LeaseUntil()) < 58*time.Minute || claim.Key() != o+"\x00\xff" || claim.Attempt() != 1 || claim.FirstClaimed().IsZero() {
					t.Errorf("got %+v", claim)
				}
				result := append([]byte("\x00\xff"+o), make([]byte, oncemill.MostResult-len(o)-2)...)
				if err := claim.Settle(within(t), result, nil); err != nil {
					t.Errorf("%q: %v", o, err)
					return
				}
				_, err = c.Claim(within(t), o+"\x00\xff", opts)
				var e *oncemill.Error
				if !errors.Is(err, oncemill.ErrSettled) || !errors.As(err, &e) {
					t.Errorf("%q: %v", o, err)
					return
				}
				held := e.Held
				if string(held.Result) != string(result) || held.Token != claim.Token() || held.Action != o || held.Agent != o+o || held.Amount != "-12.3400" || held.Currency != o {
					t.Errorf("%q: got %+v", o, held)
				}
				opts.Fingerprint = []byte{}
				_, err = c.Claim(within(t), o+"\x00\xff", opts)
				if !errors.Is(err, oncemill.ErrKeyReused) {
					t.Errorf("%q: %v, want another fingerprint to be refused", o, err)
				}
				events, err := c.Events(within(t), o+"\x00\xff", 0, 10)
				if err != nil || len(events) != 4 || events[0].Kind != oncemill.EventClaimed || events[1].Kind != oncemill.EventSettled {
					t.Errorf("%q: %v, %+v", o, err, events)
					return
				}
				for _, e := range events[:2] {
					if e.Actor != o+"\uFFFD\uFFFD" || e.Action != o || e.Agent != o+o || e.Amount != "-12.3400" || e.Currency != o || e.Token != claim.Token() || e.Note != "" {
						t.Errorf("%q: got %+v", o, e)
					}
				}
				if string(events[0].Payload) != "\x00\xff"+o || events[0].Result != nil || string(events[1].Result) != string(result) || events[1].Payload != nil {
					t.Errorf("%q: payload %q, result of %d bytes", o, events[0].Payload, len(events[1].Result))
				}
			})
		})
	}
}

// What is nothing stays nothing.
func TestASharedClaimOfNothingInParticular(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := sharing(f.db).Consumer("test")
	must(t, claim(t, c, "nil", oncemill.ClaimOptions{}).Settle(within(t), nil, nil))
	must(t, claim(t, c, "empty", oncemill.ClaimOptions{Fingerprint: []byte{}, Payload: []byte{}}).Settle(within(t), []byte{}, nil))
	for key, null := range map[string]string{"nil": "", "empty": "NOT"} {
		if n := f.count(`SELECT count(*) FROM oncemill.claims WHERE key = $1 AND fingerprint IS `+null+` NULL AND result IS `+null+` NULL
			AND num_nulls(action, agent, scope, amount, currency, reason, in_doubt_since) = 7`, key); n != 1 {
			t.Errorf("the claim %s is not as it was given", key)
		}
		if n := f.count(`SELECT count(*) FROM oncemill.events WHERE key = $1 AND coalesce(payload, result) IS `+null+` NULL AND num_nulls(action, agent, amount, currency, note) = 5`, key); n != 2 {
			t.Errorf("%d of 2 events of %s are as they were given", n, key)
		}
	}
}

// Settings of a session that make a shared statement fail make none of its claims fail.
func TestSharedClaimsInOddSessions(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "settings of the connection string")
	for _, setting := range []string{"default_transaction_isolation=serializable", "default_transaction_isolation=repeatable%20read", "statement_timeout=20000", "bytea_output=escape", "standard_conforming_strings=off", "plan_cache_mode=force_generic_plan"} {
		t.Run(setting, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			db := f.open("postgres", f.url+"&"+setting)
			db.SetMaxOpenConns(4)
			c, other := sharing(db).Consumer("test"), sharing(db).Consumer("test")
			together(64, func(i int) {
				c := [2]*oncemill.Consumer{c, other}[i%2]
				claim, err := c.Claim(within(t), fmt.Sprint(`k\"`, i/4), oncemill.ClaimOptions{Patient: true, Amount: "1", Payload: []byte(`\"`)})
				if errors.Is(err, oncemill.ErrInFlight) || errors.Is(err, oncemill.ErrSettled) {
					return
				}
				if err == nil {
					err = claim.Settle(within(t), []byte(`\"`), nil)
				}
				if err != nil {
					t.Error(err)
				}
			})
			if n := f.count(`SELECT count(*) FROM oncemill.claims WHERE outcome = 'settled' AND result = $1`, []byte(`\"`)); n != 16 {
				t.Errorf("%d of 16 keys are settled", n)
			}
		})
	}
}
