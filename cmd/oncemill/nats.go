package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
)

// natsOptions are the flags that lead to NATS.
type natsOptions struct {
	url, creds, ca, cert, key *string
}

func (f *flags) nats(unless string) natsOptions {
	o := natsOptions{
		url:   f.text("nats-url", "URL", "the NATS servers, separated by commas "+unless),
		creds: f.text("nats-creds", "FILE", "credentials for NATS, as nsc writes them"),
		ca:    f.text("nats-tls-ca", "FILE", "certificate authority of the NATS servers, in PEM"),
		cert:  f.text("nats-tls-cert", "FILE", "certificate to show to the NATS servers, in PEM; needs --nats-tls-key"),
		key:   f.text("nats-tls-key", "FILE", "key of the certificate, in PEM"),
	}
	*o.url = nats.DefaultURL
	return o
}

// check checks the flags and returns what connects.
func (o natsOptions) check(logger *slog.Logger) (connectTo, error) {
	options, err := o.options(logger)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (*broker, error) {
		conn, err := o.connect(options)
		if err != nil {
			return nil, err
		}
		if err := checkJetStream(ctx, conn); err != nil {
			conn.Close()
			return nil, err
		}
		return &broker{
			name: "NATS at " + conn.ConnectedUrlRedacted(),
			sink: &jetstream.Sink{Conn: conn, Logger: logger},
			ready: func() error {
				if !conn.IsConnected() {
					return fmt.Errorf("NATS: %s", conn.Status())
				}
				return nil
			},
			close: conn.Close,
		}, nil
	}, nil
}

// options checks the flags and returns what they mean to nats.go.
func (o natsOptions) options(logger *slog.Logger) ([]nats.Option, error) {
	if err := checkNATSURL(*o.url); err != nil {
		return nil, err
	}
	options := []nats.Option{
		nats.Name("oncemill relay"),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(), // credentials may be put right while it waits
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil { // nil: it was closed on purpose
				logger.Warn("NATS connection lost, reconnecting until it is back", "error", err)
			}
		}),
		nats.ReconnectHandler(func(conn *nats.Conn) {
			logger.Info("NATS connection is back", "server", conn.ConnectedUrlRedacted())
		}),
	}
	if (*o.cert == "") != (*o.key == "") {
		return nil, usagef("--nats-tls-cert and --nats-tls-key only go together: give both or neither")
	}
	for name, file := range map[string]string{"nats-creds": *o.creds, "nats-tls-ca": *o.ca, "nats-tls-cert": *o.cert, "nats-tls-key": *o.key} {
		if err := checkFile(name, file); err != nil {
			return nil, err
		}
	}
	if *o.creds != "" {
		options = append(options, nats.UserCredentials(*o.creds))
	}
	if *o.ca != "" {
		options = append(options, nats.RootCAs(*o.ca))
	}
	if *o.cert != "" {
		options = append(options, nats.ClientCert(*o.cert, *o.key))
	}
	return options, nil
}

// checkNATSURL does not repeat the URL, which may hold a password.
func checkNATSURL(servers string) error {
	for server := range strings.SplitSeq(servers, ",") {
		server = strings.TrimSpace(server)
		if !strings.Contains(server, "://") {
			server = "nats://" + server
		}
		if u, err := url.Parse(server); err != nil || u.Hostname() == "" {
			return usagef("--nats-url is not an address, or several separated by commas: want nats://host:4222, with special characters in user and password percent-encoded")
		}
	}
	return nil
}

func checkFile(flagName, file string) error {
	if file == "" {
		return nil
	}
	f, err := os.Open(file)
	if err != nil {
		return unreadable(flagName, err)
	}
	return f.Close()
}

func unreadable(flagName string, err error) error {
	return usagef("--%s: %w (give the path of a file that this user may read)", flagName, err)
}

// connect returns a connection that has been established.
func (o natsOptions) connect(options []nats.Option) (*nats.Conn, error) {
	conn, err := nats.Connect(*o.url, options...)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to NATS at %s: %w (check --nats-url, the credentials and that the server runs; for Kafka give --kafka-brokers)", redacted(*o.url), err)
	}
	return conn, nil
}

// checkJetStream fails if the server says that it has no JetStream. Silence is
// no proof: the user may not be allowed to ask.
func checkJetStream(ctx context.Context, conn *nats.Conn) error {
	js, err := natsjs.New(conn)
	if err != nil {
		return fmt.Errorf("JetStream: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err = js.AccountInfo(ctx)
	if errors.Is(err, natsjs.ErrJetStreamNotEnabled) || errors.Is(err, natsjs.ErrJetStreamNotEnabledForAccount) {
		return fmt.Errorf("NATS at %s has no JetStream: %w (start nats-server with -js, or enable JetStream for the account)", conn.ConnectedUrlRedacted(), err)
	}
	return nil
}

// redacted returns the hosts of NATS URLs without user and password.
func redacted(servers string) string {
	var hosts []string
	for server := range strings.SplitSeq(servers, ",") {
		_, server, _ = cutScheme(strings.TrimSpace(server))
		hosts = append(hosts, server[strings.LastIndexByte(server, '@')+1:])
	}
	return strings.Join(hosts, ",")
}

func cutScheme(server string) (scheme, rest string, ok bool) {
	if scheme, rest, ok = strings.Cut(server, "://"); ok {
		return scheme, rest, true
	}
	return "", server, false
}
