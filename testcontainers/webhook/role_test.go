package webhook_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"net"
	"net/http"
	"time"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/webhook"
	"github.com/oncemill/oncemill/testcontainers/internal/actor"
	"github.com/oncemill/oncemill/testcontainers/internal/pqdial"
)

// roleVariable makes the test binary play the role that it holds, as JSON.
const roleVariable = "ONCEMILL_TEST_WEBHOOK_ROLE"

const secret = "whsec_processes"

// A role is a receiver. It says on its standard output, a line each:
//
//	listening ADDRESS  it serves requests there
//	dying WHAT         it does to itself what its Fault says
type role struct {
	Name     string
	Postgres string // URL
	Topic    string
	Timeout  time.Duration
	Fault    fault // what it does to itself
	After    int   // how often it spares itself that
}

type fault string

const (
	dieBeforeCommit fault = "die before the COMMIT is sent"
	dieWithinCommit fault = "die once the COMMIT is sent"
	dieBeforeReply  fault = "die after the commit, before the reply"
)

// A performer is a process that plays a role.
type performer struct {
	actor.Player
	role
}

func play(text string) error {
	a := &performer{}
	if err := json.Unmarshal([]byte(text), &a.role); err != nil {
		return err
	}
	connector, err := pq.NewConnector(a.Postgres)
	if err != nil {
		return err
	}
	connector.Dialer(pqdial.AroundCommits(func() { a.opportunity(dieBeforeCommit) }, func() { a.opportunity(dieWithinCommit) }))
	db := sql.OpenDB(connector)
	defer db.Close()
	receiver := &webhook.Stripe{Inbox: &oncemill.Inbox{DB: db}, Topic: a.Topic, Secrets: []string{secret}, Timeout: a.Timeout}
	if err := receiver.Check(context.Background()); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	a.Say("listening http://%s", listener.Addr())
	return http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		receiver.ServeHTTP(replies{w, a}, r)
	}))
}

// opportunity is called where a fault could happen, and makes it happen if it is the
// actor's.
func (a *performer) opportunity(f fault) {
	if a.Fault == f {
		a.Suffer(false, a.After, string(f))
	}
}

// replies gives the fault its opportunity before a reply that says that an event is
// stored.
type replies struct {
	http.ResponseWriter
	a *performer
}

func (r replies) Write(p []byte) (int, error) {
	if bytes.Equal(p, []byte("stored\n")) {
		r.a.opportunity(dieBeforeReply)
	}
	return r.ResponseWriter.Write(p)
}
