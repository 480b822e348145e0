package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/oncemill/oncemill/schema"
)

var versionCommand = command{
	name:    "version",
	summary: "print the version of this program and of the schema it needs",
	help: `
Print the version of this program, of Go and of the database schema it needs.

  oncemill version`,
	prepare: func(*flags) action {
		return func(_ context.Context, stdout, _ io.Writer) error {
			_, err := fmt.Fprintf(stdout, "oncemill %s, %s %s/%s, schema %d\n",
				version(), runtime.Version(), runtime.GOOS, runtime.GOARCH, schema.Version)
			return err
		}
	},
}

// version returns the module's version as the build recorded it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}
