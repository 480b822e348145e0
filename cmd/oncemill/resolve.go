package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/dbcheck"
)

var resolveCommand = command{
	name:    "resolve",
	summary: "ask what became of effects in doubt, and settle or release them",
	help: `
Ask what became of the effects of one consumer that are in doubt, and settle,
release or fail their claims by the answers. Any number may run at a time, also
beside the resolvers inside of workers. It needs an address of yours that can tell:

  oncemill resolve --consumer payments --ask-url http://127.0.0.1:8000/what-became-of

It gets a POST with a JSON object for each claim, as oncemill claims --in-doubt
--json shows it: with the members consumer, key, provider_key, token, attempts,
first_claimed, effect_until, since, reason, asked, amount, currency, payload and
message (topic, uuid, metadata, ordering_key, payload; null if none is parked).
Payloads and the ordering key are in base64. It answers 200 and

  {"verdict": "happened", "note": "how it is known", "result": {"id": "pi_123"}}

with the verdict happened, not happened, never or unknown. Anything else is
unknown, and it is asked again later. "not happened" has the effect made again: it
has to come from a source that is consistent, and is believed only --landing-bound
after the last attempt.

A program that writes rows when it settles should run its own resolver: this one
cannot write them. It runs until SIGTERM or SIGINT.`,
	prepare: prepareResolve,
}

// resolveOptions are the flags of the command resolve.
type resolveOptions struct {
	database
	log                                       logOptions
	name, askURL, token, http                 *string
	landing, backoff, deadline, timeout, poll *time.Duration
	concurrency                               *int
}

func prepareResolve(f *flags) action {
	o := resolveOptions{
		database:    f.database(),
		name:        f.text("consumer", "NAME", "whose claims to resolve; required"),
		askURL:      f.text("ask-url", "URL", "what to ask, http:// or https://; required"),
		token:       f.secret("ask-token", "sent to it as Authorization: Bearer ..."),
		landing:     f.duration("landing-bound", time.Minute, "how long after an attempt its effect may still appear at the provider"),
		backoff:     f.duration("backoff", time.Second, "the pause after the first answer that decides nothing; it doubles up to 5 minutes"),
		deadline:    f.duration("deadline", 24*time.Hour, "after which time in doubt a claim is left for a person"),
		timeout:     f.duration("timeout", 30*time.Second, "how long an answer may take"),
		concurrency: f.count("concurrency", 4, "how many claims are asked about at a time"),
		poll:        f.duration("poll-interval", time.Second, "how often to look for claims in doubt"),
		http:        f.text("http", "ADDR", "where to serve /livez and /readyz, such as 127.0.0.1:8080\n(default: nowhere)"),
		log:         f.log(),
	}
	return func(ctx context.Context, _, stderr io.Writer) error { return o.run(ctx, stderr) }
}

func (o resolveOptions) run(ctx context.Context, stderr io.Writer) error {
	logger := o.log.logger(stderr)
	if err := o.check(); err != nil {
		return err
	}
	consumer, close, err := o.consumer(ctx, *o.name, logger)
	if err != nil {
		return err
	}
	defer close()
	inbox := consumer.Inbox()
	if known, err := isKnown(ctx, inbox, *o.name); err != nil {
		return err
	} else if !known {
		logger.Warn("oncemill: this consumer has no claims and no events yet: is that its name?", "consumer", *o.name)
	}
	client := &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	defer client.CloseIdleConnections()
	resolver := &oncemill.Resolver{
		Consumer: consumer,
		Ask: func(ctx context.Context, d oncemill.InDoubt) (oncemill.Resolution, error) {
			return o.ask(ctx, client, d)
		},
		LandingBound: *o.landing,
		Backoff:      *o.backoff,
		Deadline:     *o.deadline,
		Timeout:      *o.timeout,
		Concurrency:  *o.concurrency,
		Poll:         *o.poll,
	}
	ready := func() error {
		if ctx.Err() != nil {
			return errors.New("shutting down")
		}
		probe, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return dbcheck.Check(probe, inbox.DB, inbox.Schema)
	}
	return serve(ctx, "resolver", *o.http, ready, logger.With("consumer", *o.name), resolver.Run)
}

func (o resolveOptions) check() error {
	if *o.name == "" {
		return usagef("needs --consumer: whose claims to resolve")
	}
	if *o.askURL == "" {
		return usagef("needs --ask-url: what can tell what became of an effect")
	}
	u, err := url.Parse(*o.askURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return usagef("--ask-url must be http://host/path or https://host/path")
	}
	return checkAddress(*o.http)
}

// A question is what the address is sent about one claim.
type question struct {
	oncemill.InDoubt
	ProviderKey string `json:"provider_key"`
}

// An answer is what it answers.
type answer struct {
	Verdict string          `json:"verdict"`
	Note    string          `json:"note"`
	Result  json.RawMessage `json:"result"`
}

func (o resolveOptions) ask(ctx context.Context, client *http.Client, d oncemill.InDoubt) (oncemill.Resolution, error) {
	body, err := json.Marshal(question{d, d.ProviderKey()})
	if err != nil {
		return oncemill.Resolution{}, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, *o.askURL, bytes.NewReader(body))
	if err != nil {
		return oncemill.Resolution{}, err
	}
	request.Header.Set("Content-Type", "application/json")
	if *o.token != "" {
		request.Header.Set("Authorization", "Bearer "+*o.token)
	}
	response, err := client.Do(request)
	if err != nil {
		return oncemill.Resolution{}, err
	}
	defer response.Body.Close()
	return readAnswer(response)
}

func readAnswer(response *http.Response) (oncemill.Resolution, error) {
	const most = 2 * oncemill.MostResult
	text, err := io.ReadAll(io.LimitReader(response.Body, most+1))
	switch {
	case err != nil:
		return oncemill.Resolution{}, err
	case response.StatusCode != http.StatusOK:
		return oncemill.Resolution{}, fmt.Errorf("--ask-url answered %s, not 200", response.Status)
	case len(text) > most:
		return oncemill.Resolution{}, fmt.Errorf("--ask-url answered with more than %d bytes", most)
	}
	var a answer
	if err := json.Unmarshal(text, &a); err != nil {
		return oncemill.Resolution{}, fmt.Errorf("--ask-url answered with what is not JSON as the help describes it: %w", err)
	}
	verdicts := map[string]oncemill.Verdict{
		"happened": oncemill.Happened, "not happened": oncemill.NotHappened, "never": oncemill.Never, "unknown": oncemill.Unknown,
	}
	verdict, ok := verdicts[a.Verdict]
	if !ok {
		return oncemill.Resolution{}, fmt.Errorf("--ask-url answered with the verdict %.40q: must be happened, not happened, never or unknown", a.Verdict)
	}
	resolution := oncemill.Resolution{Verdict: verdict, Note: a.Note}
	if len(a.Result) > 0 && string(a.Result) != "null" {
		resolution.Result = a.Result
	}
	return resolution, nil
}
