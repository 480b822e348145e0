package main

import (
	"context"
	"database/sql"
	"log/slog"
	"net"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	wm "github.com/ThreeDotsLabs/watermill/message/router/middleware"
	_ "github.com/lib/pq"
	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/middleware"
)

// parts are what every worker is made of.
type parts struct {
	setting setting
	db      *sql.DB
	nats    *nats.Conn
}

// connect connects a worker; wrap stands on its connection to NATS.
func connect(s setting, wrap func(net.Conn) net.Conn) (*parts, error) {
	db, err := sql.Open("postgres", s.Postgres)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(16)
	db.SetMaxIdleConns(16)
	conn, err := nats.Connect(s.NATS, nats.MaxReconnects(-1), nats.SetCustomDialer(dialer(wrap)))
	if err != nil {
		return nil, err
	}
	return &parts{setting: s, db: db, nats: conn}, nil
}

func (p *parts) close() {
	p.nats.Close()
	p.db.Close()
}

// router is the only other place where the two runs differ.
func (p *parts) router(ctx context.Context) (*message.Router, error) {
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NewSlogLogger(slog.Default()))
	if err != nil {
		return nil, err
	}
	if !p.setting.Oncemill {
		router.AddMiddleware(wm.Recoverer)
		return router, nil
	}
	stack := consumers.Stack{Once: middleware.Once{Inbox: &oncemill.Inbox{DB: p.db}}}
	return router, stack.Apply(ctx, router)
}

func (p *parts) subscriber(group string) *jetstream.Subscriber {
	return &jetstream.Subscriber{Conn: p.nats, Group: group, AckWait: time.Second}
}

type dialer func(net.Conn) net.Conn

func (wrap dialer) Dial(network, address string) (net.Conn, error) {
	conn, err := net.DialTimeout(network, address, 5*time.Second)
	if err != nil {
		return nil, err
	}
	return wrap(conn), nil
}
