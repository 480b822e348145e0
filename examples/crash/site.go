package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/testcontainers/postgres"
)

// A site is the servers, and the lines to them.
type site struct {
	pair   *postgres.Pair
	broker servers
	db     *sql.DB           // to whichever server takes writes, by no line
	guards []string          // addresses
	lines  map[string]*lines // by group
}

// servers are a broker's.
type servers interface {
	addresses() []string
	createTopics(ctx context.Context, replicas int) error // 0: as many as there are nodes
	// pending returns how many messages their consumers have not acknowledged.
	pending(ctx context.Context) (int, error)
	// read reads what is in a topic, in its order.
	read(ctx context.Context, topic string) ([]delivered, error)
	faults() []fault
	close() error
}

// A delivered message is one in a topic.
type delivered struct {
	uuid    string // of a dead letter, which has its own, that of the message that was given up
	payload string
}

// brokers start a broker, by its name.
var brokers = map[string]func(ctx context.Context, out io.Writer) (servers, error){
	"nats":  startNATS,
	"kafka": startKafka,
}

const database = "crash"

func openSite(ctx context.Context, o options) (s *site, err error) {
	s = &site{lines: make(map[string]*lines)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	bin, err := postgres.Locate(ctx, os.Stdout)
	if err != nil {
		return s, err
	}
	if s.broker, err = brokers[o.broker](ctx, os.Stdout); err != nil {
		return s, err
	}
	fmt.Printf("Starting the Postgres in %s, with a standby.\n", bin)
	if s.pair, err = postgres.StartPair(ctx, o.profile.pair(bin)); err != nil {
		return s, err
	}
	if err := s.createDatabase(ctx); err != nil {
		return s, err
	}
	if err := s.broker.createTopics(ctx, o.profile.replicas); err != nil {
		return s, err
	}
	return s, s.layLines()
}

func (s *site) createDatabase(ctx context.Context) (err error) {
	if _, err = crew.CreateDatabase(ctx, s.pair.Primary(), database); err != nil {
		return err
	}
	if s.db, err = crew.OpenDB(s.pair.URL(database)); err != nil {
		return err
	}
	if err := oncemill.Migrate(ctx, s.db, ""); err != nil {
		return err
	}
	// For clerks: Oncemill limits its own transactions.
	const limit = `ALTER DATABASE ` + database + ` SET idle_in_transaction_session_timeout = '3s'`
	for _, create := range []string{createEffects, createArrivals, createNotes, createSettlements, createDeletedRows, limit} {
		if _, err := s.db.ExecContext(ctx, create); err != nil {
			return err
		}
	}
	return writeOld(ctx, s.db)
}

// layLines puts proxies between all groups and their servers.
func (s *site) layLines() (err error) {
	for range places[roleGuard] {
		address, err := freeAddress()
		if err != nil {
			return err
		}
		s.guards = append(s.guards, address)
	}
	var postgres []string
	for _, server := range s.pair.Servers() {
		postgres = append(postgres, fmt.Sprintf("127.0.0.1:%d", server.Port()))
	}
	for _, name := range groups {
		p, b, g := postgres, s.broker.addresses(), []string(nil)
		switch name {
		case group(roleAgent):
			p, b, g = nil, nil, s.guards
		case group(roleGuard):
			b = nil
		}
		if s.lines[name], err = newLines(name, p, b, g); err != nil {
			return err
		}
	}
	return nil
}

// equip tells a process where the servers are.
func (s *site) equip(to *setting) {
	l := s.lines[group(to.Role)]
	if l == nil {
		return
	}
	if len(l.postgres) > 0 {
		to.Postgres = l.through(s.pair.Primary().URL(database))
	}
	to.Addresses = addressesOf(l.broker)
	for _, address := range addressesOf(l.guards) {
		to.Guards = append(to.Guards, "http://"+address)
	}
	if to.Role == roleGuard {
		to.Listen = s.guards[to.Place-1]
	}
}

// through returns a database's URL by way of the lines, to whichever server takes writes.
func (l *lines) through(database string) string {
	u, err := url.Parse(database)
	if err != nil {
		return database // it is the server's own
	}
	var hosts, ports []string
	for _, address := range addressesOf(l.postgres) {
		host, port, _ := strings.Cut(address, ":")
		hosts, ports = append(hosts, host), append(ports, port)
	}
	query := u.Query()
	query.Set("host", strings.Join(hosts, ","))
	query.Set("port", strings.Join(ports, ","))
	query.Set("target_session_attrs", "read-write")
	query.Set("connect_timeout", "2")
	u.Host, u.RawQuery = "", query.Encode()
	return u.String()
}

// deadlocks returns what Postgres says of them in its logs.
func (s *site) deadlocks() (n int) {
	for _, server := range s.pair.Servers() {
		log, _ := server.Log() // it is there
		n += strings.Count(log, "deadlock detected")
	}
	return n
}

func (s *site) close() (err error) {
	for _, l := range s.lines {
		if l != nil {
			l.close()
		}
	}
	if s.db != nil {
		err = s.db.Close()
	}
	if s.broker != nil {
		err = errors.Join(err, s.broker.close())
	}
	if s.pair != nil {
		err = errors.Join(err, s.pair.Close())
	}
	return err
}
