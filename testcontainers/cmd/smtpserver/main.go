// Command smtpserver is a mail server on this machine, to try mails by hand. It serves
// until SIGINT or SIGTERM, and prints the mails that it has accepted. From the folder
// testcontainers:
//
//	go run ./cmd/smtpserver -lose-replies
//
// A worker sends there with &email.Sender{Addr: ..., TLS: email.NoTLS, From: ...}.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/oncemill/oncemill/testcontainers/smtpserver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "smtpserver:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("smtpserver", flag.ContinueOnError)
	flags.SetOutput(stderr)
	port := flags.Int("port", 2525, "the `port` of 127.0.0.1 to listen on; 0: a free one")
	lose := flags.Bool("lose-replies", false, "close the connection in place of the last reply to each mail, after it was accepted")
	if err := flags.Parse(args); err != nil {
		return err
	}
	options := smtpserver.Options{Port: *port, NoSTARTTLS: true}
	if *lose {
		options.Faults = []smtpserver.Fault{{At: smtpserver.Accepted, Drop: true}}
	}
	server, err := smtpserver.Start(options)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "Addr %s, without TLS\n", server.Addr())
	for n := 0; server.Await(ctx, n+1) == nil; n++ {
		m := server.Ledger()[n]
		fmt.Fprintf(stdout, "accepted %s from %s to %q\n", m.MessageID, m.From, m.Recipients)
	}
	return server.Close()
}
