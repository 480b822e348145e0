package main_test

import (
	"bufio"
	"context"
	"io"
	"net/smtp"
	"strings"
	"testing"

	main "github.com/oncemill/oncemill/testcontainers/cmd/smtpserver"
)

func TestMailsCanBeTriedByHand(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	output, stdout := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- main.Run(ctx, []string{"-port", "0", "-lose-replies"}, stdout, io.Discard)
		stdout.Close()
	}()
	lines := bufio.NewReader(output)
	line, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err, <-done)
	}
	addr, _, _ := strings.Cut(strings.TrimPrefix(line, "Addr "), ",")
	err = smtp.SendMail(addr, nil, "shop@example.com", []string{"ann@example.com"}, []byte("Message-ID: <1@example.com>\r\n\r\nHello"))
	if err == nil {
		t.Error("the reply came")
	}
	if line, err := lines.ReadString('\n'); err != nil || line != "accepted <1@example.com> from shop@example.com to [\"ann@example.com\"]\n" {
		t.Errorf("got %q (%v)", line, err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
