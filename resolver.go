package oncemill

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/oncemill/oncemill/internal/hint"
)

// A Resolver asks what became of effects that are in doubt, and settles, releases or
// fails their claims. Any number of processes may run one for the same consumer: each
// claim is asked about by one of them at a time, under a token and a lease of its own.
type Resolver struct {
	// Consumer is whose claims are resolved. Required.
	Consumer *Consumer

	// Ask finds out about one claim, from the provider, by InDoubt.ProviderKey.
	// Required. An error is Unknown, and kept in the events.
	//
	// NotHappened has the message delivered again, so it is believed only if Ask was
	// called later than LandingBound after InDoubt.EffectUntil. Even then Ask must have
	// it from a source that is consistent: not from a search index or a replica.
	Ask func(ctx context.Context, d InDoubt) (Resolution, error)

	// LandingBound is how long after an attempt has ended its effect may still appear at
	// the provider: requests in queues, lists that lag. 0 means 1 minute.
	LandingBound time.Duration

	// Backoff is the pause after the first answer that decides nothing; it doubles up
	// to MostBackoff. 0 means 1 second, and 5 minutes.
	Backoff, MostBackoff time.Duration

	// Deadline is how long after a claim came to be in doubt it is given up, and left
	// for a person. 0 means 24 hours.
	Deadline time.Duration

	// Timeout is how long one Ask may take. 0 means 30 seconds.
	Timeout time.Duration

	// Concurrency is how many claims are asked about at a time. 0 means 4.
	Concurrency int

	// Poll is the time between two looks for claims in doubt. 0 means 1 second.
	Poll time.Duration
}

// Check reports whether the fields are valid, by name.
func (r *Resolver) Check() error {
	if r.Consumer == nil {
		return fmt.Errorf("oncemill: Resolver.Consumer is nil: set it to Inbox.Consumer(name)")
	}
	if r.Ask == nil {
		return fmt.Errorf("oncemill: Resolver.Ask is nil: set it to what asks the provider")
	}
	for name, d := range map[string]time.Duration{
		"LandingBound": r.LandingBound, "Backoff": r.Backoff, "MostBackoff": r.MostBackoff,
		"Deadline": r.Deadline, "Timeout": r.Timeout, "Poll": r.Poll,
	} {
		if d < 0 {
			return fmt.Errorf("oncemill: Resolver.%s is %v: must not be negative, 0 is the default", name, d)
		}
	}
	if r.Concurrency < 0 {
		return fmt.Errorf("oncemill: Resolver.Concurrency is %d: must not be negative, 0 is the default", r.Concurrency)
	}
	set := *r
	if set.setDefaults(); set.LandingBound >= set.Deadline {
		return fmt.Errorf("oncemill: Resolver.LandingBound is %v and Deadline %v: what is not found would never be believed; give it a longer Deadline", set.LandingBound, set.Deadline)
	}
	return nil
}

// Run resolves until ctx ends, and then returns nil once what is being asked about is
// finished. It fails only if a field is wrong. While the database is away it logs that
// once and goes on when it is back.
func (r *Resolver) Run(ctx context.Context) error {
	if err := r.Check(); err != nil {
		return err
	}
	set := *r
	set.setDefaults()
	ticker := time.NewTicker(set.Poll)
	defer ticker.Stop()
	failing := false
	log := set.Consumer.in.Logger
	for {
		n, err := set.round(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !failing:
			log.ErrorContext(ctx, "oncemill: resolving claims failed, will try again", "consumer", set.Consumer.name, "error", err)
		case err == nil && failing:
			log.InfoContext(ctx, "oncemill: resolving claims works again", "consumer", set.Consumer.name)
		}
		failing = err != nil
		if n == set.Concurrency {
			continue // there may be more
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (r *Resolver) setDefaults() {
	r.LandingBound = orDefault(r.LandingBound, time.Minute)
	r.Backoff = orDefault(r.Backoff, time.Second)
	r.MostBackoff = orDefault(r.MostBackoff, 5*time.Minute)
	r.Deadline = orDefault(r.Deadline, 24*time.Hour)
	r.Timeout = orDefault(r.Timeout, 30*time.Second)
	r.Poll = orDefault(r.Poll, time.Second)
	if r.Concurrency == 0 {
		r.Concurrency = 4
	}
}

// takeDueSQL takes claims over that are in doubt and to be asked about. Those that
// another resolver is taking are skipped. $3 is for how long; $4 how long an effect
// may take to appear, $5 how long after it came to be in doubt a claim is given up.
const takeDueSQL = `
WITH due AS MATERIALIZED (
	SELECT consumer, key, token AS attempt, in_doubt_since IS NULL AS noticed FROM {schema}.claims
	WHERE consumer = $1 AND settled_at IS NULL AND lease_until < clock_timestamp()
		AND COALESCE(ask_after, '-infinity') <= clock_timestamp()
	ORDER BY lease_until
	LIMIT $2
	FOR UPDATE SKIP LOCKED
), c AS (
	UPDATE {schema}.claims t SET token = nextval('{schema}.tokens'), asked = COALESCE(t.asked, 0) + 1,
		in_doubt_since = COALESCE(t.in_doubt_since, t.lease_until),
		reason = COALESCE(t.reason, 'its lease was over'),
		lease_until = clock_timestamp() + $3 * interval '1 microsecond'
	FROM due WHERE t.consumer = due.consumer AND t.key = due.key
	RETURNING t.*, due.attempt, due.noticed
), noted AS (
	INSERT INTO {schema}.events (consumer, key, kind, token, actor, note, action, agent, amount, currency)
	SELECT c.consumer, c.key, e.kind, CASE e.kind WHEN 'in doubt' THEN c.attempt ELSE c.token END, $6, CASE e.kind WHEN 'in doubt' THEN c.reason ELSE 'question ' || c.asked END, c.action, c.agent, c.amount, c.currency
	FROM c CROSS JOIN (VALUES (1, 'in doubt'), (2, 'asking')) AS e (nth, kind)
	WHERE c.noticed OR e.kind <> 'in doubt'
	ORDER BY c.consumer, c.key, e.nth
)
SELECT ` + inDoubtColumns + `,
	(extract(epoch FROM c.effect_until + $4 * interval '1 microsecond' - clock_timestamp()) * 1000000)::bigint,
	c.in_doubt_since + $5 * interval '1 microsecond' < clock_timestamp(), c.noticed
FROM c` + inDoubtJoins

// dueClaim is a claim in doubt that this resolver has taken.
type dueClaim struct {
	InDoubt
	claim   *Claim
	landing time.Duration // from now on the effect may still appear for so long
	last    bool          // its deadline has passed: it is asked about for the last time
	noticed bool          // nobody knew yet that it is in doubt
}

// round takes what is due, asks, and acts on the answers.
func (r *Resolver) round(ctx context.Context) (taken int, err error) {
	due, err := r.take(ctx)
	if err != nil {
		return 0, err
	}
	var asking sync.WaitGroup
	for _, d := range due {
		asking.Go(func() { r.resolve(ctx, d) })
	}
	asking.Wait()
	return len(due), nil
}

func (r *Resolver) lease() time.Duration { return r.Timeout + r.Consumer.in.DrainTimeout }

func (r *Resolver) take(ctx context.Context) (due []dueClaim, err error) {
	in := r.Consumer.in
	start := time.Now()
	d := &delivered{consumer: r.Consumer.name}
	work, stop := in.detach(ctx)
	defer stop()
	if failed := in.guarded(work, d, OpResolve, func(g *guardTx) (func(context.Context, Tx) error, error) {
		rows, err := g.tx.QueryContext(g.ctx, in.sql.in(takeDueSQL), r.Consumer.name, r.Concurrency, r.lease().Microseconds(),
			r.LandingBound.Microseconds(), r.Deadline.Microseconds(), thisProcess())
		if err != nil {
			return nil, err
		}
		defer rows.Close()
		for rows.Next() {
			var one dueClaim
			var landing int64
			if one.InDoubt, err = scanInDoubt(rows, &landing, &one.last, &one.noticed); err != nil {
				return nil, err
			}
			one.landing = time.Duration(landing) * time.Microsecond
			one.claim = &Claim{
				consumer: r.Consumer, token: one.Token, attempt: one.Attempts, first: one.FirstClaimed,
				d:        &delivered{consumer: one.Consumer, key: one.Key, stored: one.stored, opts: ClaimOptions{Lease: r.lease()}},
				deadline: start.Add(r.Timeout),
			}
			due = append(due, one)
		}
		return nil, rows.Err()
	}); failed != nil {
		return nil, failed
	}
	return due, nil
}

// resolve asks about one claim and acts on the answer. What it cannot write comes
// again once its lease is over.
func (r *Resolver) resolve(ctx context.Context, d dueClaim) {
	if observer := r.Consumer.in.Observer; d.noticed && observer.InDoubt != nil {
		observer.InDoubt(ctx, d.Consumer, d.Key, d.Reason)
	}
	answer := r.ask(ctx, d)
	if ctx.Err() != nil && answer.Verdict == Unknown {
		answer.Note = "interrupted"
	}
	err := r.act(ctx, d, answer)
	if IsHandlerError(err) { // in what Resolution.Settle writes: it will hardly work at once
		err = errors.Join(err, r.postpone(ctx, d, fmt.Sprintf("%s, but that cannot be settled: %v", answer.Verdict, err)))
	}
	if err != nil {
		r.Consumer.in.Logger.ErrorContext(ctx, "oncemill: a claim in doubt could not be resolved, will try again",
			"consumer", d.Consumer, "key", d.Key, "token", d.Token, "verdict", string(answer.Verdict), "error", err)
	}
}

// ask calls Ask. Whatever goes wrong in it decides nothing.
func (r *Resolver) ask(ctx context.Context, d dueClaim) (answer Resolution) {
	ctx, cancel := context.WithDeadlineCause(ctx, d.claim.Deadline(), ErrLeaseOver)
	defer cancel()
	defer func() {
		if panicked := recover(); panicked != nil {
			answer = Resolution{Note: fmt.Sprintf("Ask panicked: %v", panicked)}
		}
	}()
	answer, err := r.Ask(ctx, d.InDoubt)
	switch {
	case err != nil:
		return Resolution{Note: err.Error()}
	case answer.Verdict == NotHappened && d.landing > 0:
		return Resolution{Note: fmt.Sprintf("not found, but it may still appear for %v; %s", d.landing.Round(time.Millisecond), answer.Note)}
	case answer.Verdict == Happened && len(answer.Result) > MostResult:
		answer.Note = joinNotes(answer.Note, fmt.Sprintf("its result of %d bytes is too large to be kept", len(answer.Result)))
		answer.Result = nil
	}
	return answer
}

func (r *Resolver) act(ctx context.Context, d dueClaim, answer Resolution) error {
	note := resolvedAs(answer.Verdict)
	var err error
	switch answer.Verdict {
	case Happened:
		err = d.claim.end(ctx, OpSettle, event{kind: EventSettled, note: joinNotes(note, answer.Note), result: answer.Result}, Settled, r.Consumer.in.calm(answer.Settle))
	case NotHappened:
		err = d.claim.Release(ctx, joinNotes(note, answer.Note))
	case Never:
		err = d.claim.Fail(ctx, joinNotes(note, answer.Note), answer.Settle)
	default:
		return r.postpone(ctx, d, answer.Note)
	}
	if err == nil && r.Consumer.in.Observer.Resolved != nil {
		r.Consumer.in.Observer.Resolved(ctx, d.Consumer, d.Key, answer.Verdict)
	}
	return err
}

// postponeSQL gives the lease of a claim back. $4 is after how long to ask again;
// NULL: never.
const postponeSQL = `
UPDATE {schema}.claims SET lease_until = LEAST(lease_until, clock_timestamp()),
	ask_after = COALESCE(clock_timestamp() + $4 * interval '1 microsecond', 'infinity')
WHERE consumer = $1 AND key = $2 AND token = $3 AND outcome IS NULL
RETURNING ` + aboutColumns

// postpone leaves the claim in doubt until it is asked about again.
func (r *Resolver) postpone(ctx context.Context, d dueClaim, note string) error {
	pause := max(r.Backoff<<min(d.Asked-1, 20), r.Backoff)
	pause = max(min(pause, r.MostBackoff), 0)
	if d.landing > 0 {
		pause = min(pause, d.landing)
	}
	again := any(pause.Microseconds())
	note = joinNotes(fmt.Sprintf("not known yet (asked %d times)", d.Asked), note)
	if ctx.Err() != nil {
		again = int64(0)
	} else if d.last {
		again, note = nil, joinNotes("given up: a person has to resolve it", note)
	}
	err := d.claim.step(ctx, OpResolve, func(g *guardTx) (_ func(context.Context, Tx) error, because, err error) {
		e := event{kind: EventAsked, token: d.Token, note: note}
		postponed, err := g.changed(postponeSQL, g.d.consumer, g.d.stored, d.Token, again)
		if err == nil && postponed {
			return nil, nil, g.event(e)
		}
		if err != nil {
			return nil, nil, err
		}
		because, err = g.refuse(OpResolve, d.Token, e)
		return nil, because, err
	})
	if err == nil && d.last && ctx.Err() == nil {
		r.Consumer.in.Logger.ErrorContext(ctx, "oncemill: an effect stays in doubt; find out by the provider key what became of it, then run the command with --happened, --not-happened or --never and a --note",
			"consumer", d.Consumer, "key", d.Key, "token", d.Token, "provider_key", d.ProviderKey(),
			"command", hint.Resolve(r.Consumer.in.Schema, d.Consumer, d.Key, d.Token), "since", d.Since, "note", note)
	}
	return err
}
