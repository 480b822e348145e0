package oncemill

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/oncemill/oncemill/internal/metadata"
	"github.com/oncemill/oncemill/internal/storedkey"
)

// InDoubt is a claim of which nobody knows whether its effect happened.
type InDoubt struct {
	Consumer string `json:"consumer"`
	Key      string `json:"key"`      // as it was given to Claim; for one of more than 512 bytes, what stands for it in the table
	Token    int64  `json:"token"`    // what Resolve wants to know, so that it does not resolve another attempt
	Attempts int    `json:"attempts"` // at the effect, so far

	FirstClaimed time.Time `json:"first_claimed"`      // when the first attempt began
	EffectUntil  time.Time `json:"effect_until"`       // when the last attempt was over at the latest, but for a process that was frozen
	Since        time.Time `json:"since"`              // when the claim came to be in doubt
	Reason       string    `json:"reason"`             // why it is
	Asked        int       `json:"asked"`              // how often a Resolver has asked
	AskAfter     time.Time `json:"ask_after,omitzero"` // when it asks again; zero: it has given up, or there was none yet
	GivenUp      bool      `json:"given_up"`           // a Resolver's Deadline has passed: it is for a person to resolve

	Action   string `json:"action"` // as given to Claim, like what follows
	Agent    string `json:"agent"`
	Amount   string `json:"amount"`
	Currency string `json:"currency"`
	Payload  []byte `json:"payload"` // in base64 where it is JSON

	// Message was parked because of the claim. nil: none was, or not yet.
	Message *ParkedMessage `json:"message"`

	stored string
}

// ProviderKey returns what Claim.ProviderKey returned to the attempts.
func (d InDoubt) ProviderKey() string { return providerKey(d.Consumer, d.storedKey()) }

// storedKey is what the table has for the key, also of an InDoubt that did not come from
// it.
func (d InDoubt) storedKey() string {
	switch {
	case d.stored != "":
		return d.stored
	case d.Key == "": // the zero InDoubt
		return ""
	}
	return shownOr(d.Key)
}

// inDoubtColumns are what scanInDoubt reads, from claims as c.
const inDoubtColumns = `c.consumer, c.key, c.token, c.attempts, c.claimed_at, c.effect_until, COALESCE(c.in_doubt_since, c.lease_until),
	COALESCE(c.reason, 'its lease was over'), COALESCE(c.asked, 0), CASE WHEN c.ask_after < 'infinity' THEN c.ask_after END, COALESCE(c.ask_after = 'infinity', false),
	COALESCE(c.action, ''), COALESCE(c.agent, ''), COALESCE(c.amount::text, ''), COALESCE(c.currency, ''), e.payload,
	p.topic, p.uuid, p.metadata, p.ordering_key, p.payload`

// inDoubtJoins are what belongs to a claim c in doubt.
const inDoubtJoins = `
LEFT JOIN {schema}.parked p ON p.consumer = c.consumer AND p.key = c.key
LEFT JOIN LATERAL (
	SELECT payload FROM {schema}.events e
	WHERE e.consumer = c.consumer AND e.key = c.key AND e.kind IN ('claimed', 'taken over')
	ORDER BY e.id DESC LIMIT 1
) e ON true`

func scanInDoubt(rows *sql.Rows, more ...any) (d InDoubt, err error) {
	var askAfter sql.NullTime
	var topic, uuid sql.NullString
	var meta, orderingKey, payload []byte
	err = rows.Scan(append([]any{&d.Consumer, &d.stored, &d.Token, &d.Attempts, &d.FirstClaimed, &d.EffectUntil, &d.Since,
		&d.Reason, &d.Asked, &askAfter, &d.GivenUp, &d.Action, &d.Agent, &d.Amount, &d.Currency, &d.Payload, &topic, &uuid, &meta, &orderingKey, &payload}, more...)...)
	if err != nil {
		return d, err
	}
	d.Key, d.AskAfter = shownKey(d.stored), askAfter.Time
	if topic.Valid {
		d.Message = &ParkedMessage{Topic: topic.String, UUID: uuid.String, OrderingKey: orderingKey, Payload: payload}
		d.Message.Metadata, err = metadata.Decode(meta)
	}
	return d, err
}

// InDoubt returns up to limit claims that are in doubt, of one consumer or, with "",
// of all, in the order of consumers and keys. To get the next ones, call it with the
// last claim that it returned as after; begin with the zero InDoubt.
func (in *Inbox) InDoubt(ctx context.Context, consumer string, after InDoubt, limit int) ([]InDoubt, error) {
	in.start.Do(in.setUp)
	rows, err := in.DB.QueryContext(ctx, in.sql.in(`
SELECT `+inDoubtColumns+` FROM {schema}.claims c`+inDoubtJoins+`
WHERE c.settled_at IS NULL AND (c.in_doubt_since IS NOT NULL OR c.lease_until < clock_timestamp())
	AND ($1 = '' OR c.consumer = $1) AND (c.consumer, c.key) > ($2, $3)
ORDER BY c.consumer, c.key
LIMIT $4`), consumer, after.Consumer, after.storedKey(), limit)
	return collect("list claims in doubt", rows, err, func(rows *sql.Rows) (InDoubt, error) { return scanInDoubt(rows) })
}

// collect reads all rows of a query, or makes an error of err.
func collect[T any](what string, rows *sql.Rows, err error, scan func(*sql.Rows) (T, error)) (all []T, _ error) {
	failed := func(err error) error { return fmt.Errorf("oncemill: %s: %w", what, markUnavailable(err)) }
	if err != nil {
		return nil, failed(err)
	}
	defer rows.Close()
	for rows.Next() {
		one, err := scan(rows)
		if err != nil {
			return nil, failed(err)
		}
		all = append(all, one)
	}
	if err := rows.Err(); err != nil {
		return nil, failed(err)
	}
	return all, nil
}

// A Resolution says what became of an effect that was in doubt.
type Resolution struct {
	// Verdict is what is known by now. With Unknown nothing changes, and a Resolver
	// asks again later.
	Verdict Verdict

	// Note says how that is known, for people: it is kept in the events, and as the
	// reason of a claim that failed.
	Note string

	// Result is what the claim is settled with, if the effect happened.
	Result []byte

	// Settle runs in the transaction that settles the claim, as happened or as failed:
	// rows that the handler would have written with Claim.OnSettle or OnFail. Optional.
	Settle func(ctx context.Context, tx Tx) error

	// Actor says who resolves, in the events. "" means this process.
	Actor string
}

// Resolve ends a claim that is in doubt: with Happened it is settled, with
// NotHappened released, and its message, if it was parked, goes back to the outbox in
// the same transaction; with Never it is settled as failed. token is that of the
// claim as InDoubt returned it; if there was another attempt since, Resolve fails with
// ErrFenced. note is kept in the events.
//
// NotHappened can have the effect made again, so it takes proof. Happened does not
// write what the handler would have written when it settles: use ResolveWith for that.
//
// A claim whose attempt is still under way is ErrInFlight, one that has been settled
// ErrSettled.
func (c *Consumer) Resolve(ctx context.Context, key string, token int64, verdict Verdict, note string) error {
	return c.ResolveWith(ctx, key, token, Resolution{Verdict: verdict, Note: note})
}

// ResolveWith is Resolve with more to say.
func (c *Consumer) ResolveWith(ctx context.Context, key string, token int64, r Resolution) error {
	d := &delivered{consumer: c.name, key: key, stored: storedKey(key)}
	if err := r.check(); err != nil {
		return d.invalid(OpResolve, err)
	}
	if key == "" {
		return d.invalid(OpResolve, ErrNoKey)
	}
	claim := &Claim{consumer: c, d: d, token: token}
	return claim.step(ctx, OpResolve, func(g *guardTx) (func(context.Context, Tx) error, error, error) {
		because, err := g.takeInDoubt(token)
		if because != nil && err == nil {
			// Perhaps an earlier call has done it, whose answer was lost.
			before, err := g.happened(resolvedSQL, g.d.consumer, g.d.stored, token, resolvedAs(r.Verdict)+"%")
			if before {
				because = nil
			}
			return nil, because, err
		}
		if err != nil {
			return nil, nil, err
		}
		return g.resolve(r)
	})
}

func (r *Resolution) check() error {
	switch {
	case r.Verdict != Happened && r.Verdict != NotHappened && r.Verdict != Never:
		return fmt.Errorf("verdict is %q: must be Happened, NotHappened or Never", r.Verdict)
	case len(r.Result) > MostResult:
		return fmt.Errorf("%w: %d bytes, at most %d", ErrResultTooLarge, len(r.Result), MostResult)
	}
	return nil
}

// Held returns by what a key is taken, nil if it is free.
func (c *Consumer) Held(ctx context.Context, key string) (*Held, error) {
	d := &delivered{consumer: c.name, key: key, stored: storedKey(key)}
	if key == "" {
		return nil, d.invalid(OpKey, ErrNoKey)
	}
	held, err := d.find(func() (*Held, error) {
		return scanHeld(c.in.DB.QueryRowContext(ctx, c.in.sql.in(heldSQL), d.heldArgs()...))
	})
	if err != nil {
		return nil, d.failed(OpClaim, err)
	}
	return held, nil
}

// find reads a claim for somebody who may know the key only as InDoubt shows it.
func (d *delivered) find(read func() (*Held, error)) (*Held, error) {
	held, err := read()
	if err == nil && held == nil && storedkey.IsHash(d.key) {
		d.stored = d.key
		held, err = read()
	}
	return held, err
}

// takeInDoubt takes a claim in doubt over. Its next statement ends it; until then
// nobody else sees it.
func (g *guardTx) takeInDoubt(token int64) (because, err error) {
	held, err := g.d.find(g.readHeld)
	switch {
	case err != nil:
		return nil, err
	case held == nil:
		return fmt.Errorf("%w: there is no claim of this key", ErrFenced), nil
	case held.Outcome != "":
		return &heldError{fmt.Errorf("%w: as %s", ErrSettled, held.Outcome), held}, nil
	case held.Token != token:
		return &heldError{fmt.Errorf("%w: token %d, now %d (look at what is in doubt again)", ErrFenced, token, held.Token), held}, nil
	case !held.InDoubt:
		return &heldError{fmt.Errorf("%w, for at most %v: its attempt is still under way", ErrInFlight, held.Remaining.Round(time.Millisecond)), held}, nil
	}
	return nil, nil
}

// resolve ends a claim that this transaction has taken.
func (g *guardTx) resolve(r Resolution) (lent func(context.Context, Tx) error, because, err error) {
	var token int64
	if err := g.row(fenceSQL, g.d.consumer, g.d.stored).Scan(&token); err != nil {
		return nil, nil, err
	}
	e := event{token: token, note: joinNotes(resolvedAs(r.Verdict), r.Note), result: r.Result, actor: r.Actor}
	if r.Verdict == NotHappened {
		e.kind = EventReleased
		_, err := g.release(e, true)
		return nil, nil, err
	}
	outcome := Settled
	if e.kind = EventSettled; r.Verdict == Never {
		e.kind, outcome = EventFailed, Failed
	}
	if _, err := g.settle(outcome, r.Note, e); err != nil {
		return nil, nil, err
	}
	return g.in.calm(r.Settle), nil, nil
}

// resolvedAs begins the note of the event of a claim that is resolved.
func resolvedAs(v Verdict) string { return "resolved: " + string(v) }

// resolvedSQL finds out whether an earlier call has resolved the claim with token $3 so:
// then that is the last thing that happened to the key, and the one before it happened
// to that token. A Resolver's resolution has the token of its asking. Others may have
// been refused since.
const resolvedSQL = `
WITH happened AS MATERIALIZED (
	SELECT token, note, row_number() OVER (ORDER BY id DESC) AS nth FROM (
		SELECT id, token, note FROM {schema}.events
		WHERE consumer = $1 AND key = $2 AND kind NOT IN ('blocked', 'conflict', 'refused')
		ORDER BY id DESC LIMIT 2
	) AS latest
)
SELECT (` + unconfirmed + `)::integer FROM happened AS last, happened AS before
WHERE last.nth = 1 AND before.nth = 2 AND before.token = $3 AND last.token <> $3 AND last.note LIKE $4`

// fenceSQL gives a claim another token: whoever has the old one shall not find that
// the claim was ended as it wants to end it itself.
const fenceSQL = `
UPDATE {schema}.claims SET token = nextval('{schema}.tokens') WHERE consumer = $1 AND key = $2
RETURNING token`

// noteDoubtsSQL notes up to $4 leases that are over, of those that have ended since $3.
const noteDoubtsSQL = `
WITH due AS MATERIALIZED (
	SELECT consumer, key FROM {schema}.claims
	WHERE consumer = $1 AND settled_at IS NULL AND in_doubt_since IS NULL AND lease_until < clock_timestamp() AND lease_until >= $3
	ORDER BY lease_until
	LIMIT $4
	FOR UPDATE SKIP LOCKED
), doubted AS (
	UPDATE {schema}.claims AS c SET in_doubt_since = lease_until, reason = COALESCE(reason, $2)
	FROM due WHERE c.consumer = due.consumer AND c.key = due.key
	RETURNING c.*
), noted AS (
	INSERT INTO {schema}.events (consumer, key, kind, token, actor, note, action, agent, amount, currency)
	SELECT consumer, key, 'in doubt', token, $5, $2, action, agent, amount, currency FROM doubted
)
SELECT key FROM doubted`

// NoteDoubts notes which claims of the consumer are in doubt because their lease is over,
// so that events and Observer.InDoubt tell of them before somebody claims the key again.
// It returns how many there were. since spares it those whose lease ended before: pass
// what is somewhat earlier than the last call, or the zero Time for all. Claims that
// were settled late meanwhile are not in doubt, and a late settlement is fine afterwards,
// too.
func (c *Consumer) NoteDoubts(ctx context.Context, since time.Time) (n int, err error) {
	const most = 1000
	for {
		rows, err := c.in.DB.QueryContext(ctx, c.in.sql.in(noteDoubtsSQL), c.name, leaseWasOver, since, most, thisProcess())
		keys, err := collect("note what is in doubt", rows, err, func(rows *sql.Rows) (key string, err error) {
			err = rows.Scan(&key)
			return key, err
		})
		n += len(keys)
		for _, key := range keys {
			if c.in.Observer.InDoubt != nil {
				c.in.Observer.InDoubt(ctx, c.name, shownKey(key), leaseWasOver)
			}
		}
		if err != nil || len(keys) < most {
			return n, err
		}
	}
}
