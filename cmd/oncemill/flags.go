package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill/internal/pgurl"
	"github.com/oncemill/oncemill/schema"
)

// flags are a command's flags. Each can be set in the environment as well, but for those
// of onlyHere.
type flags struct {
	cmd    command
	args   []string // what the command was given besides flags
	set    *flag.FlagSet
	listed []listedFlag // in the order of their declaration
}

// A listedFlag is what the help says about a flag.
type listedFlag struct {
	name, placeholder, usage string
	parse                    func(value string) error
	secret                   bool   // only a variable: all users of a machine see arguments
	here                     bool   // no variable
	as                       string // how it was given: the flag's or the variable's name
}

func newFlags(cmd command) *flags {
	set := flag.NewFlagSet(cmd.name, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.Usage = func() {}
	return &flags{cmd: cmd, set: set}
}

// read sets the flags from the arguments, and those that are not among them from
// the environment. An empty variable counts as none.
func (f *flags) read(args []string, env environment) error {
	if err := f.parse(args); err != nil {
		return err
	}
	switch n := len(f.cmd.args); {
	case n == 0 && len(f.args) > 0 && len(subcommands(f.cmd.name)) > 0:
		return usagef("takes flags, or one of %s", strings.Join(subcommands(f.cmd.name), ", "))
	case n == 0 && len(f.args) > 0:
		return usagef("takes flags only, but was given %d other arguments (a flag's value follows it as --name value or --name=value)", len(f.args))
	case n != len(f.args):
		return usagef("takes %s besides flags, but was given %d arguments (write -- before one that begins with a dash)", strings.Join(f.cmd.args, " and "), len(f.args))
	}
	given := make(map[string]bool)
	f.set.Visit(func(one *flag.Flag) { given[one.Name] = true })
	for i, one := range f.listed {
		if given[one.name] {
			f.listed[i].as = "--" + one.name
			continue
		}
		value, ok := env(variable(one.name))
		if !ok || value == "" || one.here {
			continue
		}
		if err := one.parse(value); err != nil {
			return usagef("invalid value %q for variable %s: %w", value, variable(one.name), err)
		}
		f.listed[i].as = variable(one.name)
	}
	return nil
}

// parse reads flags and arguments, in any order. After -- there are only arguments.
func (f *flags) parse(args []string) error {
	for {
		if err := f.set.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return err
			}
			return usagef("%s", f.readable(err.Error()))
		}
		rest := f.set.Args()
		if len(rest) == 0 {
			return nil
		}
		if read := len(args) - len(rest); read > 0 && args[read-1] == "--" {
			f.args = append(f.args, rest...)
			return nil
		}
		f.args, args = append(f.args, rest[0]), rest[1:]
	}
}

// oneDash is what package flag says of a flag, up to its name.
var oneDash = regexp.MustCompile(`^(flag needs an argument: |invalid (?:boolean )?value "(?:[^"\\]|\\.)*" for (?:flag )?)-`)

// readable is an error of package flag, with the flag as the help writes it.
func (f *flags) readable(text string) string {
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: -"); ok {
		return "there is no flag --" + name + f.instead(name)
	}
	return oneDash.ReplaceAllString(text, "$1--")
}

// instead says what was probably meant by a flag that there is not.
func (f *flags) instead(name string) string {
	nearest, least := "", len(name)/3+1
	for _, one := range f.listed {
		switch d := distance(one.name, name); {
		case d == 0: // only secrets are listed and no flags
			return fmt.Sprintf(": it is only read from the environment, as %s", variable(name))
		case d <= least && !one.secret:
			nearest, least = one.name, d-1
		}
	}
	if nearest == "" {
		return ""
	}
	return fmt.Sprintf(" (is it --%s?)", nearest)
}

// distance is how many letters make the one of the other: inserted, left out or changed.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			changed := diagonal
			if a[i] != b[j] {
				changed++
			}
			diagonal = row[j+1]
			row[j+1] = min(changed, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// given returns how the first flag was given whose name has a prefix: its name,
// or its variable's. "" means that there was none.
func (f *flags) given(prefix string) (as string) {
	for _, one := range f.listed {
		if one.as != "" && strings.HasPrefix(one.name, prefix) {
			return one.as
		}
	}
	return ""
}

// variable returns the name of the environment variable of a flag.
func variable(flagName string) string {
	return "ONCEMILL_" + strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
}

func (f *flags) printHelp(w io.Writer) {
	fmt.Fprintf(w, "%s\n", strings.TrimSpace(f.cmd.help))
	if len(f.listed) == 0 {
		return
	}
	fmt.Fprint(w, "\nFlags (or in the environment):\n")
	for _, one := range f.listed {
		flag := strings.TrimSpace("--" + one.name + " " + one.placeholder)
		switch {
		case one.secret:
			fmt.Fprintf(w, "  %s\n", variable(one.name))
		case one.here:
			fmt.Fprintf(w, "  %s  (only on the command line)\n", flag)
		default:
			fmt.Fprintf(w, "  %s  (%s)\n", flag, variable(one.name))
		}
		for line := range strings.SplitSeq(one.usage, "\n") {
			fmt.Fprintf(w, "        %s\n", line)
		}
	}
}

// add declares a flag. parse must not fail for values that may be secret: its
// error is printed with the value.
func (f *flags) add(name, placeholder, usage string, parse func(string) error) {
	f.listed = append(f.listed, listedFlag{name: name, placeholder: placeholder, usage: usage, parse: parse})
	f.set.Func(name, usage, parse)
}

// onlyHere has flags that were declared not be taken from the environment: what a command
// does that cannot be undone, or which of two things it does, is for its caller to write.
func (f *flags) onlyHere(names ...string) {
	for i, one := range f.listed {
		f.listed[i].here = one.here || slices.Contains(names, one.name)
	}
}

func (f *flags) text(name, placeholder, usage string) *string {
	p := new(string)
	f.add(name, placeholder, usage, func(value string) error {
		*p = value
		return nil
	})
	return p
}

// secret declares what can be set in the environment only.
func (f *flags) secret(name, usage string) *string {
	p := new(string)
	f.listed = append(f.listed, listedFlag{name: name, usage: usage, secret: true, parse: func(value string) error {
		*p = value
		return nil
	}})
	return p
}

func (f *flags) toggle(name, usage string) *bool {
	p := new(bool)
	parse := func(value string) (err error) {
		if *p, err = strconv.ParseBool(value); err != nil {
			return errors.New("want true or false")
		}
		return nil
	}
	f.listed = append(f.listed, listedFlag{name: name, usage: usage, parse: parse})
	f.set.BoolFunc(name, usage, parse)
	return p
}

func (f *flags) count(name string, initial int, usage string) *int {
	p := &initial
	f.add(name, "N", fmt.Sprintf("%s (default %d)", usage, initial), func(value string) error {
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 {
			return errors.New("want a whole number of at least 1, such as 500")
		}
		*p = n
		return nil
	})
	return p
}

func (f *flags) duration(name string, initial time.Duration, usage string) *time.Duration {
	p := &initial
	f.add(name, "TIME", fmt.Sprintf("%s (default %v)", usage, initial), func(value string) error {
		d, err := time.ParseDuration(value)
		if err != nil || d <= 0 {
			return errors.New("want a time above 0 with its unit, such as 500ms or 10s")
		}
		*p = d
		return nil
	})
	return p
}

// maybe declares a flag for a time that is 0 unless it is given. Its usage says what that
// means.
func (f *flags) maybe(name, usage string) *time.Duration {
	p := new(time.Duration)
	f.add(name, "TIME", usage, func(value string) error {
		d, err := time.ParseDuration(value)
		if err != nil || d < 0 {
			return errors.New("want a time with its unit, such as 30m or 24h, or 0")
		}
		*p = d
		return nil
	})
	return p
}

func (f *flags) choice(name, usage string, values ...string) *string {
	p := &values[0]
	choices := slices.Clone(values)
	f.add(name, strings.ToUpper(name[strings.LastIndexByte(name, '-')+1:]), fmt.Sprintf("%s: %s (default %s)", usage, strings.Join(choices, ", "), choices[0]), func(value string) error {
		if !slices.Contains(choices, value) {
			return fmt.Errorf("want one of %s", strings.Join(choices, ", "))
		}
		*p = value
		return nil
	})
	return p
}

// A database is where a command finds Oncemill's tables.
type database struct{ url, schema *string }

// database declares the flags of every command that uses the database.
func (f *flags) database() database {
	return database{
		url:    f.text("database-url", "URL", "the Postgres database, as postgres://user:password@host:5432/name\nor as libpq's key=value pairs; required"),
		schema: f.schemaName(),
	}
}

func (f *flags) schemaName() *string {
	p := new(string)
	*p = schema.Default
	f.add("schema", "NAME", "the Postgres schema of Oncemill's tables (default "+schema.Default+")", func(value string) error {
		if value == "" || len(value) > 63 || !utf8.ValidString(value) {
			return errors.New("want a name of 1 to 63 bytes")
		}
		*p = value
		return nil
	})
	return p
}

// connector returns what opens connections to the database.
func (d database) connector() (*pq.Connector, error) {
	if *d.url == "" {
		return nil, usagef("needs a database: give --database-url or set %s, for example postgres://app:secret@127.0.0.1:5432/app?sslmode=disable", variable("database-url"))
	}
	connector, err := pgurl.Connector(*d.url)
	if err != nil {
		return nil, usagef("--database-url is %w", err)
	}
	return connector, nil
}
