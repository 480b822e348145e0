// Command stripeserver is a Stripe on this machine, to try payments by hand. It serves
// until SIGINT or SIGTERM, and writes down what was paid. From the folder testcontainers:
//
//	go run ./cmd/stripeserver -lose-replies
//
// A worker pays there with &payment.Stripe{APIKey: ..., BaseURL: ...}, with what the
// first line says.
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

	"github.com/oncemill/oncemill/testcontainers/stripeserver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "stripeserver:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("stripeserver", flag.ContinueOnError)
	flags.SetOutput(stderr)
	addr := flags.String("addr", "127.0.0.1:12111", "the `address` to listen on")
	ledger := flags.String("ledger", "/dev/stdout", "the `file` to append what was paid to, a JSON object a line")
	lose := flags.Bool("lose-replies", false, "lose the reply to the first request of each payment, after it was made")
	if err := flags.Parse(args); err != nil {
		return err
	}
	options := stripeserver.Options{Addr: *addr, Ledger: *ledger}
	if *lose {
		options.Faults = func(c stripeserver.Call) stripeserver.Fault {
			if c.Method == "POST" && c.Nth == 1 {
				return stripeserver.CutAfter
			}
			return stripeserver.None
		}
	}
	server, err := stripeserver.Start(options)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "BaseURL %s APIKey %s, and what was paid is in %s\n", server.URL(), stripeserver.DefaultAPIKey, *ledger)
	<-ctx.Done()
	return server.Close()
}
