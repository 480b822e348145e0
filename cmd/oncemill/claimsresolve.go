package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/user"
	"strconv"
	"strings"

	"github.com/oncemill/oncemill"
)

var claimsResolveCommand = command{
	name:    "claims resolve",
	summary: "say what became of an effect that is in doubt",
	args:    []string{"CONSUMER", "KEY"},
	help: `
Say what became of an effect that is in doubt. Look at the provider first, by the
provider key that oncemill claims --in-doubt shows.

  oncemill claims resolve payments order-7 --happened --note 'pi_123 in the dashboard'
  oncemill claims resolve payments order-7 --not-happened --note 'no such payment, asked support'
  oncemill claims resolve payments order-7 --never --note 'customer has withdrawn'

--happened settles the claim. Rows that the handler would have written with it are
not written: that is for your own program, with Consumer.ResolveWith.
--not-happened releases it: the parked message goes back to its topic, through the
outbox and a relay, and the effect is made again. An id of a guard is free then, and
the next claim of it proceeds.
--never settles it as failed.

It fails if there was another attempt since --token, or if one is under way. None of
these flags is read from the environment: what you say here cannot be unsaid.`,
	prepare: prepareClaimsResolve,
}

// claimsResolveOptions are the flags of the command claims resolve.
type claimsResolveOptions struct {
	database
	happened, notHappened, never *bool
	note, by, result             *string
	token                        *int
}

func prepareClaimsResolve(f *flags) action {
	o := claimsResolveOptions{
		database:    f.database(),
		happened:    f.toggle("happened", "the effect is there"),
		notHappened: f.toggle("not-happened", "it is not there, and can no longer come by itself"),
		never:       f.toggle("never", "it is not there, and shall not be made"),
		note:        f.text("note", "TEXT", "how you know; required, kept in the events"),
		by:          f.text("by", "NAME", "who says so (default: this user and host)"),
		result:      f.text("result", "TEXT", "what the claim is settled with, for those who ask again; with --happened.\nA JSON object, where CONSUMER is a guard's"),
		token:       new(int),
	}
	f.add("token", "N", "the claim's token as it was listed (default: whatever it is now)", func(value string) (err error) {
		if *o.token, err = strconv.Atoi(value); err != nil || *o.token < 1 {
			return fmt.Errorf("want a token as it is listed, a whole number above 0")
		}
		return nil
	})
	f.onlyHere("happened", "not-happened", "never", "note", "by", "result", "token")
	return func(ctx context.Context, stdout, _ io.Writer) error { return o.run(ctx, f.args[0], f.args[1], stdout) }
}

func (o claimsResolveOptions) verdict() (v oncemill.Verdict, err error) {
	n := 0
	for verdict, given := range map[oncemill.Verdict]bool{
		oncemill.Happened: *o.happened, oncemill.NotHappened: *o.notHappened, oncemill.Never: *o.never,
	} {
		if given {
			v, n = verdict, n+1
		}
	}
	switch {
	case n == 0:
		return "", usagef("needs one of --happened, --not-happened and --never")
	case n > 1:
		return "", usagef("takes only one of --happened, --not-happened and --never")
	case strings.TrimSpace(*o.note) == "":
		return "", usagef("needs --note: say how you know, for whoever asks later")
	case *o.result != "" && v != oncemill.Happened:
		return "", usagef("--result goes with --happened")
	}
	return v, nil
}

func (o claimsResolveOptions) run(ctx context.Context, name, key string, stdout io.Writer) error {
	verdict, err := o.verdict()
	switch {
	case err != nil:
		return err
	case key == "":
		return errNoKey
	case ofGuard(name) && *o.result != "" && !isObject(*o.result):
		return usagef(`--result must be a JSON object for the consumer %s, such as '{"charge":"ch_1"}': it is what the guard answers with`, name)
	}
	consumer, close, err := o.consumer(ctx, name, nil)
	if err != nil {
		return err
	}
	defer close()
	held, err := consumer.Held(ctx, key)
	switch {
	case err != nil:
		return err
	case held == nil:
		return fmt.Errorf("there is no claim of key %q of consumer %q: nothing is in doubt about it (oncemill claims --in-doubt lists what is)", key, name)
	case held.Outcome != "":
		return fmt.Errorf("key %q of consumer %q is not in doubt: it has ended, with the outcome %s", key, name, held.Outcome)
	}
	resolution := oncemill.Resolution{Verdict: verdict, Note: *o.note, Actor: o.actor()}
	if *o.result != "" {
		resolution.Result = []byte(*o.result)
	}
	token := held.Token
	if *o.token > 0 {
		token = int64(*o.token)
	}
	if err := consumer.ResolveWith(ctx, key, token, resolution); err != nil {
		return err
	}
	became := map[oncemill.Verdict]string{oncemill.Happened: "settled", oncemill.NotHappened: "released", oncemill.Never: "settled as failed"}[verdict]
	if verdict == oncemill.NotHappened {
		became += ofItsMessage(ctx, consumer, key)
	}
	_, err = fmt.Fprintf(stdout, "%s %s: %s\n", shown(name), shown(key), became)
	return err
}

// ofGuard reports whether a consumer's claims are those that a guard serves.
func ofGuard(consumer string) bool {
	return consumer == "guard" || strings.HasPrefix(consumer, "guard/")
}

func isObject(text string) bool {
	var object map[string]json.RawMessage
	return json.Unmarshal([]byte(text), &object) == nil && object != nil
}

// ofItsMessage says where the message of a claim that was just released is, by the last
// event of its release. The claim is released also where that cannot be read.
func ofItsMessage(ctx context.Context, consumer *oncemill.Consumer, key string) string {
	if ofGuard(consumer.Name()) { // parks none
		return "; the id is free, and the next claim of it proceeds"
	}
	note := ""
	for after := int64(0); ; {
		events, err := consumer.Events(ctx, key, after, page)
		if err != nil {
			return "; oncemill claims events tells whether its message was parked and went back"
		}
		for _, e := range events {
			if after = e.ID; e.Kind == oncemill.EventReleased {
				note = e.Note
			}
		}
		if len(events) < page {
			break
		}
	}
	if strings.HasSuffix(note, "its message went back to the outbox") {
		return "; its message was parked, and is in the outbox now, for a relay to send"
	}
	return "; no message was parked beside it: publish it again, unless the broker still delivers it"
}

func (o claimsResolveOptions) actor() string {
	if *o.by != "" {
		return *o.by
	}
	name, host := "unknown", "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil {
		host = h
	}
	return name + "@" + host
}
