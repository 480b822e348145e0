package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/oncemill/oncemill/internal/dbcheck"
	"github.com/oncemill/oncemill/internal/doctor"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1 // something went wrong while the command ran
	exitUsage   = 2 // the command was not understood
)

// An environment looks up a variable, like os.LookupEnv.
type environment func(name string) (value string, ok bool)

// A command is one of the program's subcommands.
type command struct {
	name    string // of one word, or of two or three
	summary string
	help    string   // what --help says before it lists the flags
	args    []string // the names of the arguments that it takes besides flags

	// prepare declares the command's flags and returns what runs it once they
	// are read.
	prepare func(f *flags) action
}

// An action is a command with its flags read. It writes results to stdout and
// logs to stderr.
type action func(ctx context.Context, stdout, stderr io.Writer) error

func commands() []command {
	return []command{
		migrateCommand, relayCommand,
		outboxCommand, outboxListCommand, outboxRetryCommand, outboxDropCommand, outboxCancelCommand, outboxReplayCommand, outboxDrainCommand,
		resolveCommand, claimsCommand, claimsListCommand, claimsShowCommand, claimsEventsCommand, claimsResolveCommand, claimsPurgeCommand,
		guardCommand, guardTenantsCommand, guardTenantsAddCommand, guardTenantsRotateCommand, guardTenantsRevokeCommand, guardTenantsListCommand,
		doctorCommand, versionCommand,
	}
}

// A usageError is the user's mistake in calling the program.
type usageError struct{ error }

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// run is the whole program. It returns the exit code.
func run(ctx context.Context, args []string, env environment, stdout, stderr io.Writer) int {
	name, args, err := splitCommand(args)
	if err != nil {
		return fail(stderr, "oncemill", err)
	}
	if name == "help" {
		return help(args, stdout, stderr)
	}
	cmd, ok := find(name)
	if !ok {
		return fail(stderr, "oncemill", unknownCommand(name))
	}
	f := newFlags(cmd)
	act := cmd.prepare(f)
	if err := f.read(args, env); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			f.printHelp(stdout)
			return exitOK
		}
		return fail(stderr, "oncemill "+cmd.name, err)
	}
	if err := act(ctx, stdout, stderr); err != nil {
		return fail(stderr, "oncemill "+cmd.name, withRemedy(cmd.name, err))
	}
	return exitOK
}

// withRemedy adds to an error what tells which right is missing, where that is the matter
// and the error does not tell itself.
func withRemedy(name string, err error) error {
	first, _, _ := strings.Cut(name, " ")
	role, ok := map[string]doctor.Role{
		"outbox": doctor.Operator, "claims": doctor.Operator, "resolve": doctor.Effects, "relay": doctor.Relay, "guard": doctor.Guard, "migrate": doctor.Migrate,
	}[first]
	if !ok || name == outboxDrainCommand.name || dbcheck.SQLState(err) != "42501" || strings.Contains(err.Error(), "(GRANT ") {
		return err
	}
	return fmt.Errorf("%w (`oncemill doctor --role %s`, with the same --database-url, says which GRANT is missing)", err, role)
}

// splitCommand takes the command's name from the arguments. Values of flags are
// not repeated in errors here: one may be a database's URL.
func splitCommand(args []string) (name string, rest []string, err error) {
	if len(args) == 0 {
		return "", nil, usagef("which command? (%s)", names())
	}
	switch first := args[0]; {
	case first == "-h" || first == "-help" || first == "--help":
		return "help", args[1:], nil
	case first == "-version" || first == "--version":
		return "version", args[1:], nil
	case strings.HasPrefix(first, "-"):
		before, _, _ := strings.Cut(first, "=")
		return "", nil, usagef("%s comes before the command: write `oncemill COMMAND %s ...` (COMMAND is one of: %s)", before, before, names())
	}
	name, rest = withSubcommand(args)
	return name, rest, nil
}

// withSubcommand takes a command's name from the arguments, with as many words as it has.
func withSubcommand(args []string) (name string, rest []string) {
	for words := min(3, len(args)); words > 1 && args[0] != "help"; words-- {
		name = strings.Join(args[:words], " ")
		if _, ok := find(name); ok {
			return name, args[words:]
		}
	}
	return args[0], args[1:]
}

// subcommands returns the next words of the commands whose names begin with name.
func subcommands(name string) (words []string) {
	for _, cmd := range commands() {
		if word, ok := strings.CutPrefix(cmd.name, name+" "); ok && !strings.Contains(word, " ") {
			words = append(words, word)
		}
	}
	return words
}

func find(name string) (command, bool) {
	for _, cmd := range commands() {
		if cmd.name == name {
			return cmd, true
		}
	}
	return command{}, false
}

// unknownCommand repeats the name only if it looks like one.
func unknownCommand(name string) error {
	if strings.ContainsAny(name, ":/@=") {
		return usagef("the first argument must be a command (%s)", names())
	}
	return usagef("there is no command %q (%s)", name, names())
}

// unknownSubcommand says which words a command's name goes on with. The word is repeated
// only if it looks like one.
func unknownSubcommand(name, word string) error {
	if strings.ContainsAny(word, ":/@=") {
		word = "of that name"
	} else {
		word = fmt.Sprintf("%q", name+" "+word)
	}
	if words := subcommands(name); len(words) > 0 {
		return usagef("there is no command %s (%s takes flags, or one of %s)", word, name, strings.Join(words, ", "))
	}
	return usagef("there is no command %s (%s takes flags)", word, name)
}

func names() string {
	var all []string
	for _, cmd := range commands() {
		if !strings.Contains(cmd.name, " ") {
			all = append(all, cmd.name)
		}
	}
	return strings.Join(append(all, "help"), ", ")
}

// fail prints what went wrong and returns the exit code.
func fail(stderr io.Writer, who string, err error) int {
	text := err.Error()
	for _, prefix := range []string{"oncemill: ", "outbox: ", "watermillsql: "} {
		text = strings.TrimPrefix(text, prefix)
	}
	fmt.Fprintf(stderr, "%s: %s\n", who, text)
	var usage usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(stderr, "Run `%s --help` for help.\n", who)
		return exitUsage
	}
	return exitFailure
}

func help(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stdout, programHelp())
		return exitOK
	}
	name, rest := withSubcommand(args)
	cmd, ok := find(name)
	if !ok {
		return fail(stderr, "oncemill", unknownCommand(name))
	}
	if len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		return fail(stderr, "oncemill", unknownSubcommand(name, rest[0]))
	}
	f := newFlags(cmd)
	cmd.prepare(f)
	f.printHelp(stdout)
	return exitOK
}

func programHelp() string {
	var b strings.Builder
	b.WriteString(`Oncemill makes the effects of messages happen exactly once.

This program sets up its tables in Postgres, relays the outbox to NATS JetStream
or Apache Kafka, lets you deal with what could not be sent, resolves effects that are
in doubt, and serves claims over HTTP to programs in any language. Handlers in Go use
the packages.

Commands:
`)
	for _, cmd := range commands() {
		if strings.Count(cmd.name, " ") < 2 { // the help of those of two words has the others
			fmt.Fprintf(&b, "  %-15s %s\n", cmd.name, cmd.summary)
		}
	}
	b.WriteString(`  help            show this text, or that of a command: oncemill help relay

A first run:
  export ONCEMILL_DATABASE_URL='postgres://app:secret@127.0.0.1:5432/app?sslmode=disable'
  oncemill migrate
  oncemill relay --nats-url nats://127.0.0.1:4222    or
  oncemill relay --kafka-brokers 127.0.0.1:9092

Flags can be set in the environment: --database-url as ONCEMILL_DATABASE_URL,
--batch as ONCEMILL_BATCH. A flag wins. The help of a command says which cannot.

Exit codes: 0 done, 1 failed, 2 not understood.
`)
	return b.String()
}
