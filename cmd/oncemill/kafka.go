package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/oncemill/oncemill/consumers/kafka"
)

// kafkaOptions are the flags that lead to Kafka.
type kafkaOptions struct {
	brokers                            *[]string
	tls                                *bool
	ca, cert, key                      *string
	sasl, user, passwordFile, password *string
}

func (f *flags) kafka() kafkaOptions {
	return kafkaOptions{
		brokers:      f.addresses("kafka-brokers", "publish to Kafka instead of NATS: some of its brokers, as host:port,\nseparated by commas"),
		tls:          f.toggle("kafka-tls", "use TLS with the system's certificate authorities"),
		ca:           f.text("kafka-tls-ca", "FILE", "certificate authority of the brokers, in PEM; implies TLS"),
		cert:         f.text("kafka-tls-cert", "FILE", "certificate to show to the brokers, in PEM; implies TLS and needs\n--kafka-tls-key"),
		key:          f.text("kafka-tls-key", "FILE", "key of the certificate, in PEM"),
		sasl:         f.choice("kafka-sasl", "how to log in", noSASL, "plain", "scram-sha-256", "scram-sha-512"),
		user:         f.text("kafka-user", "NAME", "who logs in"),
		passwordFile: f.text("kafka-password-file", "FILE", "the password; one newline at the end does not count. It is read for each\nconnection, and so may change"),
		password:     f.secret("kafka-password", "the password, instead of a file"),
	}
}

const noSASL = "none"

// addresses declares a flag of host:port, separated by commas.
func (f *flags) addresses(name, usage string) *[]string {
	p := new([]string)
	f.add(name, "ADDRS", usage, func(value string) error {
		var all []string
		for address := range strings.SplitSeq(value, ",") {
			address = strings.TrimSpace(address)
			host, port, err := net.SplitHostPort(address)
			if n, errPort := strconv.Atoi(port); err != nil || errPort != nil || n < 1 || n > 65535 || host == "" || strings.ContainsAny(host, "/@ ") {
				return errors.New("want host:port, or several separated by commas, such as 10.0.0.1:9092,10.0.0.2:9092")
			}
			all = append(all, address)
		}
		*p = all
		return nil
	})
	return p
}

// check checks the flags and returns what connects.
func (o kafkaOptions) check(logger *slog.Logger) (connectTo, error) {
	options, err := o.options()
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (*broker, error) {
		if *o.sasl == "plain" && !o.hasTLS() {
			logger.Warn("with --kafka-sasl plain and without --kafka-tls the password can be read on the network")
		}
		return o.connect(ctx, options, logger)
	}, nil
}

// options checks the flags and returns what they mean to franz-go.
func (o kafkaOptions) options() ([]kgo.Opt, error) {
	options := []kgo.Opt{
		kgo.SeedBrokers(*o.brokers...),
		kgo.ClientID("oncemill relay"),
		// With 10 seconds, one host that is down would use up all the time that a
		// batch has, and the others would not be asked.
		kgo.DialTimeout(3 * time.Second),
	}
	config, err := o.tlsConfig()
	if err != nil {
		return nil, err
	}
	if config != nil {
		options = append(options, kgo.DialTLSConfig(config))
	}
	mechanism, err := o.mechanism()
	if err != nil {
		return nil, err
	}
	if mechanism != nil {
		options = append(options, kgo.SASL(mechanism))
	}
	return options, nil
}

func (o kafkaOptions) hasTLS() bool { return *o.tls || *o.ca != "" || *o.cert != "" }

// connect returns a broker that has answered.
func (o kafkaOptions) connect(ctx context.Context, options []kgo.Opt, logger *slog.Logger) (*broker, error) {
	client, err := kgo.NewClient(options...)
	if err != nil {
		return nil, fmt.Errorf("connect to Kafka: %w", err)
	}
	watch := &kafkaWatch{client: client, brokers: strings.Join(*o.brokers, ","), log: logger}
	if err := watch.start(ctx); err != nil {
		client.Close()
		return nil, err
	}
	sink := &kafka.Sink{Client: client, Logger: logger}
	return &broker{
		name:  "Kafka at " + watch.brokers,
		sink:  sink,
		ready: watch.ready,
		close: func() {
			watch.stop()
			sink.Close()
			client.Close()
		},
	}, nil
}

// tlsConfig returns nil if there is to be no TLS.
func (o kafkaOptions) tlsConfig() (*tls.Config, error) {
	if (*o.cert == "") != (*o.key == "") {
		return nil, usagef("--kafka-tls-cert and --kafka-tls-key only go together: give both or neither")
	}
	if !o.hasTLS() {
		return nil, nil
	}
	config := new(tls.Config)
	if *o.ca != "" {
		pem, err := os.ReadFile(*o.ca)
		if err != nil {
			return nil, unreadable("kafka-tls-ca", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, usagef("--kafka-tls-ca: there is no certificate in %s (give the path of a file in PEM)", *o.ca)
		}
	}
	if *o.cert != "" {
		if _, err := tls.LoadX509KeyPair(*o.cert, *o.key); err != nil {
			return nil, usagef("--kafka-tls-cert and --kafka-tls-key: %w (give the paths of a certificate and its key, both in PEM)", err)
		}
		// Read for each connection: they may be renewed while the relay runs.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(*o.cert, *o.key)
			return &pair, err
		}
	}
	return config, nil
}

// mechanism returns nil if nobody is to log in.
func (o kafkaOptions) mechanism() (sasl.Mechanism, error) {
	if err := o.checkLogin(); err != nil || *o.sasl == noSASL {
		return nil, err
	}
	if _, err := o.secret(); err != nil {
		return nil, err
	}
	login := func(context.Context) (scram.Auth, error) {
		password, err := o.secret()
		return scram.Auth{User: *o.user, Pass: password}, err
	}
	switch *o.sasl {
	case "scram-sha-256":
		return scram.Sha256(login), nil
	case "scram-sha-512":
		return scram.Sha512(login), nil
	}
	return plain.Plain(func(ctx context.Context) (plain.Auth, error) {
		auth, err := login(ctx)
		return plain.Auth{User: auth.User, Pass: auth.Pass}, err
	}), nil
}

// checkLogin checks which of the flags are given together.
func (o kafkaOptions) checkLogin() error {
	with := *o.sasl != noSASL
	variable := variable("kafka-password")
	switch {
	case *o.passwordFile != "" && *o.password != "":
		return usagef("--kafka-password-file and the variable %s are both set: leave out one of them", variable)
	case !with && *o.user != "":
		return usagef("--kafka-user needs --kafka-sasl: plain, scram-sha-256 or scram-sha-512, as the brokers want it")
	case !with && *o.passwordFile != "":
		return usagef("--kafka-password-file needs --kafka-sasl and --kafka-user")
	case !with && *o.password != "":
		return usagef("the variable %s needs --kafka-sasl and --kafka-user", variable)
	case with && *o.user == "":
		return usagef("--kafka-sasl needs --kafka-user")
	case with && *o.passwordFile == "" && *o.password == "":
		return usagef("--kafka-sasl needs a password: give --kafka-password-file, or set the variable %s", variable)
	}
	return nil
}

// secret returns the password.
func (o kafkaOptions) secret() (string, error) {
	if *o.passwordFile == "" {
		return *o.password, nil
	}
	text, err := os.ReadFile(*o.passwordFile)
	if err != nil {
		return "", unreadable("kafka-password-file", err)
	}
	password := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	if password == "" {
		return "", usagef("--kafka-password-file: %s is empty (write the password into it)", *o.passwordFile)
	}
	return password, nil
}
