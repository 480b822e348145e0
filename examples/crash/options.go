package main

import (
	"flag"
	"fmt"
	"io"
	"time"
)

// options are the flags.
type options struct {
	seconds      int
	seed         uint64
	rate         int
	broker       string
	untilAnomaly bool
	keep         string // directory
	profile      *profile
}

func parse(args []string, out io.Writer) (o options, err error) {
	flags := flag.NewFlagSet("crash", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.IntVar(&o.seconds, "seconds", 60, "for how long messages are sent and things go wrong, at least 10")
	flags.Uint64Var(&o.seed, "seed", 0, "what the nemesis and the producers draw by; 0: one that is drawn, and printed")
	flags.IntVar(&o.rate, "rate", 400, "messages a second that are sent to the workers with Once")
	flags.StringVar(&o.broker, "broker", "nats", "the broker: nats, or kafka, which needs Java 17")
	flags.BoolVar(&o.untilAnomaly, "until-anomaly", false, "look for anomalies along the way, and end with the first one")
	flags.StringVar(&o.keep, "keep", "", "a directory for traces and logs, which are kept; empty: a temporary one")
	name := flags.String("profile", "", "a configuration that loses what was acknowledged, to see how much: async-commit, async-standby, unreplicated, short-retention")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if o.profile, err = profileNamed(*name); err != nil {
		return o, err
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("%q is no flag; see -help", flags.Arg(0))
	case o.seconds < 10:
		return o, fmt.Errorf("-seconds is %d: must be at least 10, for enough to go wrong", o.seconds)
	case o.rate < 10 || o.rate > 10_000:
		return o, fmt.Errorf("-rate is %d: must be from 10 to 10000 messages a second", o.rate)
	case brokers[o.broker] == nil:
		return o, fmt.Errorf("-broker is %q: must be nats or kafka", o.broker)
	case o.profile.replicas > 0 && o.broker != "nats":
		return o, fmt.Errorf("-profile %s is of the streams of NATS: leave -broker out", o.profile.name)
	}
	if o.seed == 0 {
		o.seed = uint64(time.Now().UnixNano()) % 1_000_000
	}
	return o, nil
}
