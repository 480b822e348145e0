package main

import (
	"context"
	"io"
)

// Run is run, with the environment as a map.
func Run(ctx context.Context, args []string, env map[string]string, stdout, stderr io.Writer) int {
	lookup := func(name string) (string, bool) {
		value, ok := env[name]
		return value, ok
	}
	return run(ctx, args, lookup, stdout, stderr)
}

// The queries of claims list, for the test that looks at their plans.
const UnsettledSQL, SettledSQL, ByKeySQL, ByIndexSQL = unsettledSQL, settledSQL, byKeySQL, byIndexSQL
