package main_test

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"

	"github.com/oncemill/oncemill/internal/testenv"
)

// The tests' Postgres does not write through to the disk, which the doctor finds. On a
// server where nothing is wrong see testcontainers/doctor.
func TestDoctorSaysWhatIsWrongAndExitsWithOne(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	s := start(t)
	s.publish(t, 3)
	code, stdout, stderr := call(t, map[string]string{"ONCEMILL_DATABASE_URL": s.dbURL, "ONCEMILL_NATS_URL": s.natsURL}, "doctor", "--role", "relay")
	if code != 1 || !strings.Contains(stderr, "findings are FAIL") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	for _, want := range []string{
		"Postgres\nOK    connection: 127.0.0.1:", "FAIL  durability: fsync is off\n      Why: ", "\n      Do:  set fsync = on",
		"OK    backlog: 3 messages wait", `WARN  superuser: role "`, "NATS\nOK    connection: nats://", "FAIL  storage: stream \"" + s.subject + `" is in memory`,
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	if strings.Contains(stdout, "No broker was looked at") || strings.Contains(stdout, "SKIP  ") {
		t.Error(stdout)
	}
}

// With routes each topic is looked for on its broker only.
func TestDoctorKnowsRoutes(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.publish(t, 1)
	_, err := s.db.Exec(`INSERT INTO oncemill.outbox (topic) VALUES ('audit-logins'), ('elsewhere')`)
	must(t, err)
	code, stdout, stderr := call(t, map[string]string{"ONCEMILL_DATABASE_URL": s.dbURL, "ONCEMILL_NATS_URL": s.natsURL},
		"doctor", "--kafka-brokers", "127.0.0.1:1", "--route", s.subject+"=nats,audit-*=kafka")
	if code != 1 {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	for says, want := range map[string]bool{
		`FAIL  routes: no --route has topic "elsewhere"`: true, "Kafka\nFAIL  connection": true, `stream "` + s.subject: true,
		"no stream captures topic": false, "there is no topic": false,
	} {
		if strings.Contains(stdout, says) != want {
			t.Errorf("%q: want %v in\n%s", says, want, stdout)
		}
	}
}

func TestDoctorWritesJSON(t *testing.T) {
	t.Parallel()
	code, stdout, _ := call(t, map[string]string{"ONCEMILL_DATABASE_URL": testenv.PostgresURL(t)}, "doctor", "--json")
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	levels := make(map[string]int)
	for line := range strings.Lines(stdout) {
		var finding struct{ Level, Part, Check, Found, Why, Do string }
		if err := json.Unmarshal([]byte(line), &finding); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if finding.Part != "postgres" || finding.Check == "" || finding.Found == "" || finding.Level == "FAIL" && (finding.Why == "" || finding.Do == "") {
			t.Errorf("incomplete: %s", line)
		}
		levels[finding.Level]++
	}
	if levels["OK"] < 15 || levels["FAIL"] != 2 {
		t.Errorf("got %v:\n%s", levels, stdout)
	}
}

// One part that is away does not keep the others from being looked at, and no password is
// told.
func TestDoctorLooksAtWhatItCanReach(t *testing.T) {
	t.Parallel()
	dbURL, natsURL := testenv.PostgresURL(t), testenv.NATSURL(t)
	away := "postgres://app:" + secret + "@127.0.0.1:1/app?sslmode=disable"
	for _, test := range []struct {
		flags []string
		says  []string
	}{
		{[]string{"--database-url", away, "--nats-url", natsURL},
			[]string{"FAIL  connection: 127.0.0.1:1/app cannot be reached", "what else is in Postgres was not looked at", "OK    JetStream"}},
		{[]string{"--database-url", dbURL, "--nats-url", "nats://user:" + secret + "@127.0.0.1:1"},
			[]string{"OK    vacuum", "FAIL  connection: 127.0.0.1:1 cannot be reached", "--nats-url"}},
		{[]string{"--database-url", dbURL, "--kafka-brokers", "127.0.0.1:1"},
			[]string{"OK    vacuum", "Kafka\nFAIL  connection: 127.0.0.1:1 cannot be reached", "--kafka-brokers"}},
		{[]string{"--database-url", dbURL}, []string{"No broker was looked at: name one by --nats-url or --kafka-brokers."}},
	} {
		code, stdout, stderr := call(t, nil, append([]string{"doctor"}, test.flags...)...)
		if code != 1 || strings.Contains(stdout+stderr, secret) {
			t.Errorf("%v: exit code %d, %s", test.flags, code, stderr)
		}
		for _, says := range test.says {
			if !strings.Contains(stdout, says) {
				t.Errorf("%v: no %q in\n%s", test.flags, says, stdout)
			}
		}
	}
}

// A connection string that makes every transaction read-only takes nothing from it.
func TestDoctorNeedsNoWrite(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	testenv.NeedsSession(t, "a setting of the connection string")
	u, err := url.Parse(testenv.PostgresURL(t))
	must(t, err)
	query := u.Query()
	query.Set("default_transaction_read_only", "on")
	u.RawQuery = query.Encode()
	_, stdout, _ := call(t, map[string]string{"ONCEMILL_DATABASE_URL": u.String()}, "doctor", "--role", "operator")
	if strings.Contains(stdout, "SKIP  ") || !strings.Contains(stdout, "FAIL  writable") {
		t.Error(stdout)
	}
}

// Without the flag no broker is looked at, so there is no default.
func TestTheDoctorsHelpHasNoDefaultBroker(t *testing.T) {
	t.Parallel()
	if _, stdout, _ := call(t, nil, "doctor", "--help"); strings.Contains(stdout, "(default nats://") {
		t.Error(stdout)
	}
	if _, stdout, _ := call(t, nil, "relay", "--help"); !strings.Contains(stdout, "(default nats://127.0.0.1:4222)") {
		t.Error(stdout)
	}
}

func TestDoctorNamesWrongFlags(t *testing.T) {
	t.Parallel()
	address := "postgres://app:" + secret + "@127.0.0.1:1/app?sslmode=disable"
	for _, test := range []struct {
		flags []string
		says  []string
	}{
		{[]string{}, []string{"needs a database", "--database-url"}},
		{[]string{"--database-url", address, "--role", "admin"}, []string{"--role", "want one of producer, worker, effects, relay, guard, operator, doctor, migrate"}},
		{[]string{"--database-url", address, "--retention", "7d"}, []string{"--retention", "with its unit"}},
		{[]string{"--database-url", address, "--stream", "A,,B"}, []string{"--stream", "separated by commas"}},
		{[]string{"--database-url", address, "--stream", "A"}, []string{"--stream, --topic and --route need a broker"}},
		{[]string{"--database-url", address, "--topic", "a"}, []string{"--stream, --topic and --route need a broker"}},
		{[]string{"--database-url", address, "--kafka-brokers", "a:1", "--stream", "A"}, []string{"--stream is for NATS"}},
		{[]string{"--database-url", address, "--kafka-brokers", "a:1", "--nats-url", "b"}, []string{"leave out one or the other"}},
		{[]string{"--database-url", address, "--route", "*=nats"}, []string{"--stream, --topic and --route need a broker"}},
		{[]string{"--database-url", address, "--nats-url", "h", "--route", "*=kafka"}, []string{"--route"}},
		{[]string{"--database-url", address, "--kafka-tls"}, []string{"give --kafka-brokers as well"}},
		{[]string{"--database-url", address, "--nats-url", "nats://u:" + secret + "@:x"}, []string{"--nats-url is not an address"}},
		{[]string{"--database-url", "mysql://u:" + secret + "@h/d"}, []string{"--database-url is not a connection string"}},
		{[]string{"--database-url", address, "--nats-url", "nats://h", "--nats-creds", "/nowhere"}, []string{"--nats-creds"}},
		{[]string{"--database-url", address, "now"}, []string{"takes flags only"}},
	} {
		code, stdout, stderr := call(t, nil, append([]string{"doctor"}, test.flags...)...)
		if code != 2 || stdout != "" || strings.Contains(stderr, secret) {
			t.Errorf("%v: exit code %d, %q, %s", test.flags, code, stdout, stderr)
		}
		for _, says := range test.says {
			if !strings.Contains(stderr, says) {
				t.Errorf("%v: %q does not say %q", test.flags, stderr, says)
			}
		}
	}
}
