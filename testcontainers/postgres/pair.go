package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"sync"
	"sync/atomic"
)

// PairOptions say how to run a pair. The zero value is a pair that loses nothing
// in a failover. Where it does not say otherwise a field holds for both servers
// and is what it is in Options.
type PairOptions struct {
	Bin string

	// Settings are put into each postgresql.conf. Those that make the pair are
	// its own: primary_conninfo, primary_slot_name and synchronous_standby_names
	// are refused.
	Settings map[string]string

	Volatile bool
	Progress io.Writer

	// Async makes the standby asynchronous: no COMMIT waits for it, and a
	// failover loses what it has not received.
	Async bool
}

// A Pair is a primary and a standby that follows it by streaming replication.
// Unless the pair is asynchronous, every COMMIT waits until the standby has it, so
// that nothing that a client knows to be committed is lost when the standby takes
// over.
//
// Its methods may be called from several goroutines; those that change the pair
// wait for each other. Both servers may be killed, started, frozen and thawed
// one by one, with one exception: a primary that Failover has killed comes back
// with Rebuild, and not with Start.
type Pair struct {
	async   bool
	servers [2]*Server
	primary atomic.Int32 // index of the one that takes writes

	mu    sync.Mutex
	ready bool // the standby has been built, and can be promoted
}

// StartPair starts a primary and its standby, and returns when the standby has
// all that the primary has and COMMITs wait for it. ctx bounds the start.
func StartPair(ctx context.Context, options PairOptions) (*Pair, error) {
	settings, err := pairSettings(options.Settings)
	if err != nil {
		return nil, err
	}
	both := Options{Bin: options.Bin, Settings: settings, Volatile: options.Volatile, Progress: options.Progress}
	primary, err := Start(ctx, both)
	if err != nil {
		return nil, err
	}
	p := &Pair{async: options.Async, servers: [2]*Server{primary, newServer(both)}}
	standby := p.servers[1]
	standby.bin, standby.password = primary.bin, primary.password // roles are copied
	if err := standby.prepare(ctx, both); err != nil {
		return nil, errors.Join(fmt.Errorf("start a standby: %w", err), p.Close())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.rebuild(ctx, true); err != nil {
		return nil, errors.Join(fmt.Errorf("start a standby: %w", err), p.Close())
	}
	return p, nil
}

// pairSettings adds what both servers of a pair need.
func pairSettings(settings map[string]string) (map[string]string, error) {
	for _, own := range []string{"primary_conninfo", "primary_slot_name", "synchronous_standby_names"} {
		if _, ok := settings[own]; ok {
			return nil, fmt.Errorf("start a pair: PairOptions.Settings has %s, which a pair sets by itself: leave it out, and say Async for COMMITs that wait for no standby", own)
		}
	}
	all := map[string]string{
		// A standby looks at this pace whether its primary is back, or whether it
		// is to be the primary itself. The default is 5 seconds.
		"wal_retrieve_retry_interval": "100ms",
	}
	maps.Copy(all, settings)
	return all, nil
}

// Primary returns the server that takes writes: after a failover the other one.
func (p *Pair) Primary() *Server { return p.servers[p.primary.Load()] }

// Standby returns the server that follows the primary, or will after Rebuild.
func (p *Pair) Standby() *Server { return p.servers[1-p.primary.Load()] }

// Servers returns both servers in an order that no failover changes. Each keeps
// its port, so that a proxy can stand in front of it.
func (p *Pair) Servers() [2]*Server { return p.servers }

// URL returns the connection URL of a database on whichever of the two servers
// takes writes when a connection is made, for a superuser. It names both hosts
// and asks for target_session_attrs=read-write, in the form that lib/pq and pgx
// understand.
func (p *Pair) URL(database string) string {
	u, err := url.Parse(p.servers[0].URL(database))
	if err != nil {
		panic(err) // it was made with URL.String
	}
	query := u.Query()
	query.Set("host", "127.0.0.1,127.0.0.1") // one for each port
	query.Set("port", fmt.Sprintf("%d,%d", p.servers[0].port, p.servers[1].port))
	query.Set("target_session_attrs", "read-write")
	u.Host, u.RawQuery = "", query.Encode()
	return u.String()
}

// Failover kills the primary with SIGKILL and promotes the standby, which is
// thawed first if it is frozen. When it returns, the new primary takes writes:
// alone, so that its COMMITs wait for nobody until Rebuild. If it fails, it can
// be called again.
func (p *Pair) Failover(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	primary, standby := p.Primary(), p.Standby()
	if !p.ready {
		return errors.New("fail over: the pair has no standby since the last failover; call Rebuild first")
	}
	if !standby.Running() {
		return errors.New("fail over: the standby is not running; call its Start, or Rebuild, first")
	}
	if err := primary.Kill(); err != nil {
		return fmt.Errorf("fail over: %w", err)
	}
	// Started by mistake, it must not take writes beside the new primary.
	if err := primary.write(standbySignal, ""); err != nil {
		return fmt.Errorf("fail over: %w", err)
	}
	if err := standby.Thaw(); err != nil {
		return fmt.Errorf("fail over: thaw the standby: %w", err)
	}
	if err := standby.promote(ctx); err != nil {
		return fmt.Errorf("fail over: promote the standby: %w", err)
	}
	p.ready = false
	p.primary.Store(1 - p.primary.Load())
	return nil
}

// promote makes a standby a primary, once it has applied all that it has
// received.
func (s *Server) promote(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	return s.session(ctx, func(conn *sql.Conn) error {
		var follows, promoted bool
		err := conn.QueryRowContext(ctx, `SELECT pg_is_in_recovery()`).Scan(&follows)
		if err != nil || !follows {
			return err
		}
		err = conn.QueryRowContext(ctx, `SELECT pg_promote(true, $1)`, int(startLimit.Seconds())).Scan(&promoted)
		if err == nil && !promoted {
			err = errors.New("it still follows")
		}
		return err
	})
}

// Rebuild makes the server that is not the primary a new standby, from a fresh
// copy of the primary, which goes on meanwhile. When it returns, the standby has
// all that was committed so far, and COMMITs wait for it again. A standby that
// still runs is killed first. If it fails, it can be called again.
func (p *Pair) Rebuild(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.rebuild(ctx, false); err != nil {
		return fmt.Errorf("rebuild the standby: %w", err)
	}
	return nil
}

// rebuild is Rebuild. With anyPort the standby has no port yet.
func (p *Pair) rebuild(ctx context.Context, anyPort bool) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	p.ready = false
	primary, standby := p.Primary(), p.Standby()
	if err := standby.Kill(); err != nil {
		return err
	}
	if err := primary.waitFor(ctx, ""); err != nil {
		return err
	}
	if err := standby.copyFrom(ctx, primary); err != nil {
		return err
	}
	if err := standby.launch(ctx, anyPort); err != nil {
		return err
	}
	if err := primary.streams(ctx); err != nil {
		return err
	}
	// Only now: as long as the standby had to catch up, every COMMIT would have
	// waited for it.
	if !p.async {
		if err := primary.waitFor(ctx, standbyName); err != nil {
			return err
		}
	}
	if err := primary.received(ctx); err != nil {
		return err
	}
	p.ready = true
	return nil
}

// Detach cuts the standby off its primary: of what is written after its return
// the standby receives nothing, until Attach. An asynchronous pair loses just
// that in a failover. In any other, COMMITs wait.
func (p *Pair) Detach(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.Standby().follow(ctx, nil); err != nil {
		return fmt.Errorf("detach the standby: %w", err)
	}
	return nil
}

// Attach lets a detached standby follow its primary again, and returns when it
// has received what it has missed.
func (p *Pair) Attach(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.Standby().follow(ctx, p.Primary())
	if err == nil {
		err = p.Primary().streams(ctx)
	}
	if err == nil {
		err = p.Primary().received(ctx)
	}
	if err != nil {
		return fmt.Errorf("attach the standby: %w", err)
	}
	return nil
}

// Close stops both servers at once and removes their files. Calling it again
// does nothing.
func (p *Pair) Close() error {
	return errors.Join(p.servers[0].Close(), p.servers[1].Close())
}
