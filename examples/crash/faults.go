package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/Shopify/toxiproxy/v2"
)

// kinds are all kinds of faults.
func (r *run) kinds() (all []fault) {
	for _, role := range []string{roleSingle, roleBatch, roleGuarded, roleDownstream, roleRelay, roleGuard} {
		all = append(all, killing(role), freezing(role), deploying(role))
	}
	all = append(all, outliving, killing(roleClerk), killing(roleAgent))
	all = append(all, cutting, slowing, swallowing("upstream"), swallowing("downstream"))
	all = append(all, killingPostgres, failingOver, losingPostgres, freezingPostgres, freezingStandby, terminating)
	all = append(all, r.site.broker.faults()...)
	if r.profile.faults != nil {
		all = append(all, r.profile.faults(r)...)
	}
	return all
}

// someone returns a process in a role.
func (s *strike) someone(role string) part {
	return part{role, 1 + s.draws.IntN(places[role])}
}

func killing(role string) fault {
	return fault{role + " killed", "", func(ctx context.Context, s *strike) (what string, err error) {
		p, after := s.someone(role), between(s.draws, 0, 1500*time.Millisecond)
		err = s.crew.Do(ctx, func() error {
			if s.kill(p, after) {
				what = fmt.Sprintf("%v is killed", p)
			}
			return nil
		})
		return what, err
	}}
}

// freezing stops a process for a time in which its acks, its transactions and its leases
// run out, or do not.
func freezing(role string) fault {
	return freezingFor(role+" frozen", role, 500*time.Millisecond, 8*time.Second)
}

// outliving has a worker go on when another one has its claims.
var outliving = freezingFor(roleGuarded+" frozen past its leases", roleGuarded, lease+500*time.Millisecond, 8*time.Second)

func freezingFor(kind, role string, least, most time.Duration) fault {
	return fault{kind, "", func(ctx context.Context, s *strike) (what string, err error) {
		p := s.someone(role)
		var thaw func()
		if err := s.crew.Do(ctx, func() error { thaw = s.freeze(p); return nil }); err != nil || thaw == nil {
			return "", err
		}
		s.pause(ctx, least, most)
		return fmt.Sprintf("%v was frozen", p), s.crew.Do(ctx, func() error { thaw(); return nil })
	}}
}

func deploying(role string) fault {
	return fault{role + " deployed", "", func(ctx context.Context, s *strike) (what string, err error) {
		p := s.someone(role)
		err = s.crew.Do(ctx, func() error {
			ok, err := s.deploy(p)
			if ok {
				what = fmt.Sprintf("%v is told to end, and followed by another", p)
			}
			return err
		})
		return what, err
	}}
}

var cutting = fault{"connections cut", "lines", onLines("were cut", func(_ context.Context, s *strike, proxies []*toxiproxy.Proxy) error {
	return cut(proxies)
})}

var slowing = fault{"connections slow", "lines", onLines("were slow", func(ctx context.Context, s *strike, proxies []*toxiproxy.Proxy) error {
	heal, err := slow(proxies, between(s.draws, 20*time.Millisecond, 400*time.Millisecond))
	if err == nil {
		s.pause(ctx, time.Second, 3*time.Second)
		heal()
	}
	return err
})}

func swallowing(stream string) fault {
	way := map[string]string{"upstream": "requests", "downstream": "answers"}[stream]
	return fault{"connections half-open, no " + way, "lines", onLines("were half-open", func(ctx context.Context, s *strike, proxies []*toxiproxy.Proxy) error {
		heal, err := swallow(proxies, stream)
		if err != nil {
			return err
		}
		s.pause(ctx, 500*time.Millisecond, 4*time.Second)
		return heal()
	})}
}

// onLines has something happen to the lines of a group.
func onLines(what string, do func(context.Context, *strike, []*toxiproxy.Proxy) error) func(context.Context, *strike) (string, error) {
	return func(ctx context.Context, s *strike) (string, error) {
		group := groups[s.draws.IntN(len(groups))]
		to, proxies := s.site.lines[group].pick(s.draws)
		return fmt.Sprintf("those of the %s to %s %s", group, to, what), do(ctx, s, proxies)
	}
}

// Postgres. What is begun is ended also if the run ends early.
var killingPostgres = fault{"Postgres killed", "postgres", func(ctx context.Context, s *strike) (string, error) {
	primary := s.site.pair.Primary()
	if err := primary.Kill(); err != nil {
		return "", err
	}
	s.pause(ctx, 100*time.Millisecond, 1500*time.Millisecond)
	return "the primary is killed, and started again", primary.Start(context.WithoutCancel(ctx))
}}

// losingPostgres has everybody see what was being committed and the standby lacks, and then
// be gone.
var losingPostgres = fault{"Postgres lost with what the standby lacks", "postgres", func(ctx context.Context, s *strike) (string, error) {
	ctx, pair := context.WithoutCancel(ctx), s.site.pair
	if err := pair.Detach(ctx); err != nil {
		return "", err
	}
	s.pause(ctx, 100*time.Millisecond, 500*time.Millisecond)
	if err := errors.Join(pair.Primary().Kill(), pair.Primary().Start(ctx)); err != nil {
		return "", err
	}
	s.pause(ctx, 300*time.Millisecond, 1500*time.Millisecond)
	_, err := failingOver.happen(ctx, s)
	return "the standby is cut off, the primary killed, started again, and killed for good", err
}}

var failingOver = fault{"Postgres failed over", "postgres", func(ctx context.Context, s *strike) (string, error) {
	ctx = context.WithoutCancel(ctx)
	if err := s.site.pair.Failover(ctx); err != nil {
		return "", err
	}
	s.pause(ctx, 500*time.Millisecond, 2*time.Second)
	return "the primary is killed, the standby promoted, and another standby made", s.site.pair.Rebuild(ctx)
}}

var freezingPostgres = fault{"Postgres frozen", "postgres", func(ctx context.Context, s *strike) (string, error) {
	primary := s.site.pair.Primary()
	if err := primary.Freeze(); err != nil {
		return "", err
	}
	s.pause(ctx, 500*time.Millisecond, 3*time.Second)
	return "the primary was frozen", primary.Thaw()
}}

var freezingStandby = fault{"standby frozen", "postgres", func(ctx context.Context, s *strike) (string, error) {
	standby := s.site.pair.Standby()
	if err := standby.Freeze(); err != nil {
		return "", err
	}
	s.pause(ctx, 500*time.Millisecond, 3*time.Second)
	return "the standby was frozen, and no COMMIT returned", standby.Thaw()
}}

var terminating = fault{"backends terminated", "postgres", func(ctx context.Context, s *strike) (string, error) {
	limited, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	const terminate = `
SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1 + (random() * 5)::int) AS victims`
	var n int
	if err := s.site.db.QueryRowContext(limited, terminate).Scan(&n); err != nil {
		return "", ignoreAway(err)
	}
	return fmt.Sprintf("%d sessions were terminated", n), nil
}}

// ignoreAway ignores that Postgres was not there.
func ignoreAway(err error) error {
	for _, text := range []string{"bad connection", "connection re", "starting up", "shutting down", "recovery", "EOF", "broken pipe"} {
		if strings.Contains(err.Error(), text) {
			return nil
		}
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
