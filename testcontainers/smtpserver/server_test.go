package smtpserver_test

import (
	"bufio"
	"context"
	"fmt"
	"net/smtp"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/oncemill/oncemill/testcontainers/smtpserver"
)

// dirVariable makes the test binary play a program that runs a server in a directory.
const dirVariable = "ONCEMILL_TEST_SMTP_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(dirVariable); dir != "" {
		child(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// child runs a server whose replies to mails are lost, and says where it is.
func child(dir string) {
	server, err := smtpserver.Start(smtpserver.Options{Dir: dir, Faults: []smtpserver.Fault{{At: smtpserver.Accepted, Drop: true}}})
	if err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
	fmt.Println(server.Addr())
	bufio.NewScanner(os.Stdin).Scan() // the end of the input, if the test ends early
}

func start(t *testing.T, options smtpserver.Options) *smtpserver.Server {
	t.Helper()
	server, err := smtpserver.Start(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Errorf("close the server: %v", err)
		}
	})
	return server
}

// send sends a mail with the client of the standard library.
func send(server *smtpserver.Server, id string) error {
	c, err := smtp.Dial(server.Addr())
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.StartTLS(server.ClientTLS()); err != nil {
		return err
	}
	return transmit(c, id)
}

func transmit(c *smtp.Client, id string) error {
	if err := c.Mail("shop@example.com"); err != nil {
		return err
	}
	for _, to := range []string{"ann@example.com", "bob@example.com"} {
		if err := c.Rcpt(to); err != nil {
			return err
		}
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "Message-ID: <%s>\r\nSubject: test\r\n\r\nSTARTTLS\r\n.dots\r\n", id)
	if err := w.Close(); err != nil {
		return err
	}
	return c.Quit()
}

func TestAMailIsInTheLedgerAsItWasSent(t *testing.T) {
	t.Parallel()
	server := start(t, smtpserver.Options{})
	for range 2 { // no provider of mail drops the second one
		if err := send(server, "m1@example.com"); err != nil {
			t.Fatal(err)
		}
	}
	mails := server.Ledger()
	if len(mails) != 2 {
		t.Fatalf("there are %d mails", len(mails))
	}
	m := mails[1]
	if m.MessageID != "<m1@example.com>" || m.From != "shop@example.com" || !slices.Equal(m.Recipients, []string{"ann@example.com", "bob@example.com"}) ||
		!m.Encrypted || m.Connection != 2 || !strings.HasSuffix(m.Data, "\r\n\r\nSTARTTLS\r\n.dots\r\n") {
		t.Errorf("the mail is %+v", m)
	}
}

func TestEveryStepCanBeRefused(t *testing.T) {
	t.Parallel()
	server := start(t, smtpserver.Options{})
	for _, at := range []smtpserver.Point{smtpserver.Greeting, smtpserver.TLS, smtpserver.MailFrom, smtpserver.Recipient,
		smtpserver.Data, smtpserver.Body, smtpserver.EndOfData, smtpserver.Accepted} {
		before := len(server.Ledger())
		server.Script(smtpserver.Fault{At: at, Code: 451, Text: "at " + string(at), Times: 1})
		err := send(server, "x@example.com")
		if err == nil || !strings.Contains(err.Error(), "at "+string(at)) {
			t.Errorf("at %s: the client's error is %v", at, err)
		}
		want := before
		if at == smtpserver.Accepted {
			want++
		}
		if got := len(server.Ledger()); got != want {
			t.Errorf("at %s: there are %d mails, not %d", at, got, want)
		}
		if err := send(server, "y@example.com"); err != nil {
			t.Errorf("after %s, the second time: %v", at, err)
		}
	}
}

func TestAFaultStrikesTheNthTimeAndWhenItIsMeantTo(t *testing.T) {
	t.Parallel()
	server := start(t, smtpserver.Options{Seed: 7})
	server.Script(smtpserver.Fault{At: smtpserver.EndOfData, Code: 550, Nth: 2,
		When: func(e smtpserver.Event) bool { return strings.HasPrefix(e.MessageID, "<b") }})
	var refused []string
	for _, id := range []string{"b1", "a1", "a2", "b2", "b3"} {
		if send(server, id+"@example.com") != nil {
			refused = append(refused, id)
		}
	}
	if !slices.Equal(refused, []string{"b2"}) {
		t.Errorf("refused were %v", refused)
	}
	server.Script(smtpserver.Fault{At: smtpserver.MailFrom, Code: 450, Rate: 0.5})
	failed := 0
	for range 40 {
		if send(server, "r@example.com") != nil {
			failed++
		}
	}
	if failed < 8 || failed > 32 {
		t.Errorf("%d of 40 failed, and half should", failed)
	}
}

func TestAFrozenServerDoesNotAnswer(t *testing.T) {
	t.Parallel()
	server := start(t, smtpserver.Options{Faults: []smtpserver.Fault{{At: smtpserver.Accepted, Freeze: true}}})
	sent := make(chan error, 1)
	go func() { sent <- send(server, "f@example.com") }()
	if err := server.Await(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-sent:
		t.Fatalf("it answered: %v", err)
	default:
	}
	server.CloseConnections()
	if err := <-sent; err == nil {
		t.Error("the client got an answer")
	}
}

func TestWhoMaySend(t *testing.T) {
	t.Parallel()
	server := start(t, smtpserver.Options{Users: map[string]string{"shop": "secret"}, RequireTLS: true})
	if err := send(server, "x@example.com"); err == nil || !strings.Contains(err.Error(), "530") {
		t.Errorf("without AUTH: %v", err)
	}
	c, err := smtp.Dial(server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if ok, _ := c.Extension("AUTH"); ok {
		t.Error("AUTH is offered in the clear")
	}
	if err := c.Mail("shop@example.com"); err == nil || !strings.Contains(err.Error(), "STARTTLS") {
		t.Errorf("in the clear: %v", err)
	}
	if err := c.StartTLS(server.ClientTLS()); err != nil {
		t.Fatal(err)
	}
	if err := c.Auth(smtp.PlainAuth("", "shop", "secret", "127.0.0.1")); err != nil {
		t.Fatal(err)
	}
	if err := transmit(c, "y@example.com"); err != nil {
		t.Fatal(err)
	}
	if m := server.Ledger()[0]; m.User != "shop" {
		t.Errorf("the mail is %+v", m)
	}
}

// Another process reads the ledger of a server that was killed, and a server that
// follows in the same directory has the same certificate.
func TestTheLedgerOutlivesTheServer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	program := exec.Command(os.Args[0])
	program.Env = append(os.Environ(), dirVariable+"="+dir)
	program.Stderr = os.Stderr
	input, err := program.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer input.Close()
	output, err := program.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	defer program.Wait() //nolint:errcheck // it is killed
	defer program.Process.Kill()
	lines := bufio.NewScanner(output)
	lines.Scan()

	c, err := smtp.Dial(lines.Text())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	trust, err := smtpserver.ClientTLS(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.StartTLS(trust); err != nil {
		t.Fatal(err)
	}
	if err := transmit(c, "lost@example.com"); err == nil {
		t.Error("the reply was not lost")
	}
	if err := program.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	mails, err := smtpserver.ReadLedger(dir)
	if err != nil || len(mails) != 1 || mails[0].MessageID != "<lost@example.com>" {
		t.Fatalf("the ledger has %+v, %v", mails, err)
	}
	// What a killed server has not finished writing was not accepted.
	ledger, err := os.OpenFile(dir+"/ledger.jsonl", os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(ledger, `{"message_id": "<half`)
	ledger.Close()
	if mails, err = smtpserver.ReadLedger(dir); err != nil || len(mails) != 1 {
		t.Errorf("with a line that is not finished: %+v, %v", mails, err)
	}
	next := start(t, smtpserver.Options{Dir: dir})
	if err := send(next, "next@example.com"); err != nil {
		t.Fatal(err)
	}
	if mails, err = smtpserver.ReadLedger(dir); err != nil || len(mails) != 2 || len(next.Ledger()) != 1 {
		t.Errorf("with another server: %+v, %v", mails, err)
	}
}

func TestAwaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	server := start(t, smtpserver.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := server.Await(ctx, 1); err == nil || !strings.Contains(err.Error(), "0 mails of 1") {
		t.Errorf("the error is %v", err)
	}
}

func TestATooLargeMailIsReadToItsEnd(t *testing.T) {
	t.Parallel()
	server := start(t, smtpserver.Options{MaxBytes: 20})
	if err := send(server, "large@example.com"); err == nil || !strings.Contains(err.Error(), "552") {
		t.Errorf("the error is %v", err)
	}
}
