package kafka_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/oncemill/oncemill/consumers/kafka"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/process"
)

const (
	user     = "relay"
	password = "hunter2" // must never be printed
)

// A fortress is a Kafka that wants to know who comes. Its listeners are at
// different ports: BROKER lets everybody in, LOGIN wants SASL, RELOGIN wants it
// again every two seconds, CERT wants a certificate, and TLSLOGIN wants SASL over
// TLS.
type fortress struct {
	*testcontainers.KafkaServer
	*bench           // on BROKER
	at               map[string]string
	ca, stranger     authority
	caFile, certFile string
	keyFile          string
}

const fortressConfig = `
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT,LOGIN:SASL_PLAINTEXT,RELOGIN:SASL_PLAINTEXT,CERT:SSL,TLSLOGIN:SASL_SSL
connections.max.reauth.ms=0
listener.name.relogin.connections.max.reauth.ms=2000
listener.name.cert.ssl.client.auth=required
`

func newFortress(t *testing.T) *fortress {
	t.Helper()
	testcontainers.Kafka(t) // skips where there can be none
	f := &fortress{at: make(map[string]string), ca: newAuthority(t), stranger: newAuthority(t)}
	certificate, key := f.ca.issue(t)
	f.caFile, f.certFile, f.keyFile = write(t, f.ca.pem), write(t, certificate), write(t, key)

	controller, broker := freePort(t), freePort(t)
	listeners := fmt.Sprintf("BROKER://127.0.0.1:%d", broker)
	var more strings.Builder
	for _, name := range []string{"LOGIN", "RELOGIN", "CERT", "TLSLOGIN"} {
		f.at[name] = fmt.Sprintf("127.0.0.1:%d", freePort(t))
		listeners += fmt.Sprintf(",%s://%s", name, f.at[name])
		prefix := "listener.name." + strings.ToLower(name)
		fmt.Fprintf(&more, "%s.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_%s=\"%s\";\n", prefix, user, password)
		fmt.Fprintf(&more, "%s.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;\n", prefix)
		fmt.Fprintf(&more, "%[1]s.ssl.keystore.type=PEM\n%[1]s.ssl.truststore.type=PEM\n", prefix)
		fmt.Fprintf(&more, "%s.ssl.keystore.certificate.chain=%s\n%s.ssl.keystore.key=%s\n", prefix, oneLine(certificate), prefix, oneLine(key))
		fmt.Fprintf(&more, "%s.ssl.truststore.certificates=%s\n", prefix, oneLine(f.ca.pem))
	}
	fmt.Fprintf(&more, "advertised.listeners=%s\nlisteners=%s,CONTROLLER://127.0.0.1:%d\ncontroller.quorum.voters=1@127.0.0.1:%d\n", listeners, listeners, controller, controller)
	var err error
	f.KafkaServer, err = testcontainers.StartKafka(within(t), testcontainers.KafkaOptions{Port: broker, Config: fortressConfig + more.String()})
	must(t, err)
	t.Cleanup(func() { must(t, f.KafkaServer.Close()) })
	f.at["BROKER"] = f.Broker()
	f.bench = benchOn(t, []string{f.Broker()}, 1)
	f.setPassword(user, password)
	return f
}

func freePort(t *testing.T) int {
	t.Helper()
	port, err := process.FreePort()
	must(t, err)
	return port
}

// oneLine makes of a file what a properties file takes for its text.
func oneLine(text []byte) string {
	return strings.ReplaceAll(string(text), "\n", `\n`)
}

func write(t *testing.T, text []byte) (file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, text, 0o600))
	return file
}

// setPassword sets what a user's SCRAM logs in with.
func (f *fortress) setPassword(user, password string) {
	f.t.Helper()
	altered, err := f.admin.AlterUserSCRAMs(within(f.t), nil, []kadm.UpsertSCRAM{{User: user, Mechanism: kadm.ScramSha256, Iterations: 4096, Password: password}})
	must(f.t, err)
	must(f.t, altered.Error())
}

// An authority signs certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

func newAuthority(t *testing.T) (a authority) {
	t.Helper()
	var err error
	a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	must(t, err)
	a.certificate, err = x509.ParseCertificate(der)
	must(t, err)
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a
}

// issue makes a certificate for 127.0.0.1, for servers and for clients.
func (a authority) issue(t *testing.T) (certificate, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "relay"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, private.Public(), a.key)
	must(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
}

// trusting returns the option to use TLS with the authority, and with a
// certificate of its own if that is wanted.
func (f *fortress) trusting(ca authority, files ...string) kgo.Opt {
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	config.RootCAs.AddCert(ca.certificate)
	if len(files) > 0 {
		pair, err := tls.LoadX509KeyPair(files[0], files[1])
		must(f.t, err)
		config.Certificates = []tls.Certificate{pair}
	}
	return kgo.DialTLSConfig(config)
}

// A visitor comes with what it has to show: options for a client, and flags for
// the daemon that say the same.
type visitor struct {
	listener string
	opts     []kgo.Opt
	flags    []string
	words    []string // why it is not let in, of the library and of the daemon
	daemon   []string // and what only the daemon says
}

func login(mechanism sasl.Mechanism) []kgo.Opt { return []kgo.Opt{kgo.SASL(mechanism)} }

func loginFlags(t *testing.T, mechanism, user, password string) []string {
	t.Helper()
	return []string{"--kafka-sasl", mechanism, "--kafka-user", user, "--kafka-password-file", write(t, []byte(password+"\n"))}
}

func TestKafkaCredentials(t *testing.T) {
	t.Parallel()
	f := newFortress(t)
	right := scram.Auth{User: user, Pass: password}
	plainly := plain.Auth{User: user, Pass: password}
	for name, v := range map[string]visitor{
		"plain":    {listener: "LOGIN", opts: login(plainly.AsMechanism()), flags: loginFlags(t, "plain", user, password)},
		"scram":    {listener: "LOGIN", opts: login(right.AsSha256Mechanism()), flags: []string{"ONCEMILL_KAFKA_SASL=scram-sha-256", "ONCEMILL_KAFKA_USER=" + user, "ONCEMILL_KAFKA_PASSWORD=" + password}},
		"cert":     {listener: "CERT", opts: []kgo.Opt{f.trusting(f.ca, f.certFile, f.keyFile)}, flags: []string{"--kafka-tls-ca", f.caFile, "--kafka-tls-cert", f.certFile, "--kafka-tls-key", f.keyFile}},
		"tlslogin": {listener: "TLSLOGIN", opts: append(login(plainly.AsMechanism()), f.trusting(f.ca)), flags: append(loginFlags(t, "plain", user, password), "--kafka-tls-ca", f.caFile)},
		"relogin":  {listener: "RELOGIN", opts: login(right.AsSha256Mechanism()), flags: loginFlags(t, "scram-sha-256", user, password)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f.letsIn(t, v)
		})
	}
}

// visited returns a bench of its own that comes as a visitor.
func (f *fortress) visited(t *testing.T, v visitor) (b *bench, client *kgo.Client) {
	t.Helper()
	b = benchOn(t, []string{f.Broker()}, 1)
	b.seeds = []string{f.at[v.listener]}
	return b, b.connect(v.opts...)
}

// letsIn wants everything to work for a visitor.
func (f *fortress) letsIn(t *testing.T, v visitor) {
	b, client := f.visited(t, v)
	subscriber := b.subscriber("g", v.opts...)
	publisher, sink := &kafka.Publisher{Client: client}, &kafka.Sink{Client: client}
	t.Cleanup(func() { publisher.Close(); sink.Close() })
	messages := b.subscribe(subscriber)
	must(t, publisher.Publish(b.topic, message.NewMessage("published", nil)))
	must(t, sink.Check(within(t)))
	must(t, errors.Join(sink.PublishBatch(within(t), []outbox.Row{{Topic: b.topic, UUID: "sunk"}})...))
	database := testcontainers.Postgres(t)
	d := relays(t, database, f.at[v.listener], v.flags...)
	enqueue(t, database, b.topic, "relayed", nil, nil)
	for _, uuid := range []string{"published", "sunk", "relayed"} {
		msg := receive(t, messages)
		if msg.UUID != uuid {
			t.Errorf("got %q, want %q", msg.UUID, uuid)
		}
		msg.Ack()
	}
	b.awaitCommitted("g", 3)
	d.awaitReady(200)
	d.stop()
	warns := strings.Contains(d.log.String(), "without --kafka-tls the password can be read")
	if want := v.listener == "LOGIN" && slices.Contains(v.flags, "plain"); warns != want {
		t.Errorf("it warns of a password that can be read: %v, want %v", warns, want)
	}
}

var refused = []string{"SASL_AUTHENTICATION_FAILED", "the brokers refuse the credentials"}

func TestKafkaWrongCredentials(t *testing.T) {
	t.Parallel()
	f := newFortress(t)
	right, wrong := scram.Auth{User: user, Pass: password}, scram.Auth{User: user, Pass: password + "?"}
	nobody := scram.Auth{User: "nobody", Pass: password}
	for name, v := range map[string]visitor{
		"plain, wrong password": {"LOGIN", login(plain.Auth{User: user, Pass: wrong.Pass}.AsMechanism()), loginFlags(t, "plain", user, wrong.Pass), refused, []string{"--kafka-user"}},
		"scram, wrong password": {"LOGIN", login(wrong.AsSha256Mechanism()), loginFlags(t, "scram-sha-256", user, wrong.Pass), refused, []string{"--kafka-user"}},
		"scram, unknown user":   {"LOGIN", login(nobody.AsSha256Mechanism()), loginFlags(t, "scram-sha-256", "nobody", password), refused, []string{"--kafka-user"}},
		"unknown mechanism":     {"LOGIN", login(right.AsSha512Mechanism()), loginFlags(t, "scram-sha-512", user, password), []string{"UNSUPPORTED_SASL_MECHANISM"}, []string{"--kafka-sasl"}},
		"no login":              {"LOGIN", nil, nil, []string{"SASL"}, []string{"--kafka-sasl"}},
		"login where none is":   {"BROKER", login(right.AsSha256Mechanism()), loginFlags(t, "scram-sha-256", user, password), []string{"ILLEGAL_SASL_STATE"}, []string{"--kafka-sasl"}},
		"no TLS":                {"CERT", nil, nil, []string{"TLS"}, []string{"--kafka-tls"}},
		"TLS where none is":     {"BROKER", []kgo.Opt{f.trusting(f.ca)}, []string{"--kafka-tls-ca", f.caFile}, []string{"TLS"}, []string{"--kafka-tls"}},
		"no certificate":        {"CERT", []kgo.Opt{f.trusting(f.ca)}, []string{"--kafka-tls-ca", f.caFile}, []string{"tls", "certificate"}, []string{"--kafka-tls-cert"}},
		"unknown authority":     {"CERT", []kgo.Opt{f.trusting(f.stranger)}, []string{"--kafka-tls-ca", write(t, f.stranger.pem)}, []string{"unknown authority"}, []string{"--kafka-tls-ca"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f.turnsAway(t, v)
		})
	}
}

// quickly bounds how long it takes to be turned away.
const quickly = 12 * time.Second

// turnsAway wants everything to say soon why it does not work for a visitor.
func (f *fortress) turnsAway(t *testing.T, v visitor) {
	b, client := f.visited(t, v)
	publisher, sink := &kafka.Publisher{Client: client}, &kafka.Sink{Client: client}
	t.Cleanup(func() { publisher.Close(); sink.Close() })
	database := testcontainers.Postgres(t)
	daemon := relays(t, database, f.at[v.listener], v.flags...)
	for what, attempt := range map[string]func() error{
		"Subscribe": func() error {
			_, err := b.subscriber("g", v.opts...).Subscribe(within(t), b.topic)
			return err
		},
		"Publish": func() error {
			err := publisher.Publish(b.topic, message.NewMessage("", nil))
			if !errors.Is(err, outbox.ErrUnavailable) {
				t.Errorf("Publish: not ErrUnavailable: %v", err)
			}
			return err
		},
		"Check": func() error { return sink.Check(within(t)) },
		"PublishBatch": func() error {
			err := sink.PublishBatch(within(t), []outbox.Row{{Topic: b.topic}})[0]
			if !errors.Is(err, outbox.ErrUnavailable) {
				t.Errorf("PublishBatch: not ErrUnavailable: %v", err)
			}
			return err
		},
	} {
		begun := time.Now()
		err := attempt()
		if took := time.Since(begun); took > quickly {
			t.Errorf("%s: it took %v", what, took)
		}
		if err == nil {
			t.Errorf("%s: no error", what)
			continue
		}
		complains(t, err, append(v.words, "oncemill: kafka: ")...)
		if strings.Count(err.Error(), refused[1]) > 1 {
			t.Errorf("%s: it says so twice: %v", what, err)
		}
		if strings.Contains(err.Error(), password) {
			t.Errorf("%s: the password is in %q", what, err)
		}
	}
	daemon.refuses(append(v.words, append(v.daemon, "Kafka at "+f.at[v.listener])...)...)
	if strings.Contains(daemon.log.String(), password) {
		t.Errorf("the password is in %q", daemon.log.String())
	}
}

// A password that is changed is noticed at the next login, and may be put right
// while everything waits.
func TestKafkaCredentialsThatChange(t *testing.T) {
	t.Parallel()
	f := newFortress(t)
	const user = "changing"
	f.setPassword(user, password)
	file := write(t, []byte(password))
	mechanism := scram.Sha256(func(context.Context) (scram.Auth, error) {
		password, err := os.ReadFile(file)
		return scram.Auth{User: user, Pass: string(password)}, err
	})
	v := visitor{listener: "RELOGIN", opts: login(mechanism)}
	b, _ := f.visited(t, v)
	subscriber := b.subscriber("g", v.opts...)
	var log logbook
	subscriber.Logger = log.Logger()
	messages := b.subscribe(subscriber)
	database := testcontainers.Postgres(t)
	d := relays(t, database, f.at[v.listener], "--kafka-sasl", "scram-sha-256", "--kafka-user", user, "--kafka-password-file", file)
	relayed := func(uuid string) {
		msg := receive(t, messages)
		if msg.UUID != uuid {
			t.Errorf("got %q, want %q", msg.UUID, uuid)
		}
		msg.Ack()
	}
	enqueue(t, database, b.topic, "before", nil, nil)
	relayed("before")

	f.setPassword(user, "another")
	complains(t, errors.New(d.awaitReady(503)), refused...)
	log.await(t, refused[1])
	enqueue(t, database, b.topic, "meanwhile", nil, nil)

	must(t, os.WriteFile(file, []byte("another"), 0o600))
	relayed("meanwhile")
	d.awaitReady(200)
	d.log.await(t, "Kafka is back")
	d.stop()
}
