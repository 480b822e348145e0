// Package schema holds the SQL migrations that create Oncemill's tables.
//
// oncemill.Migrate and the command `oncemill migrate` run them. To run them
// with a tool of your own instead, hand it FS: the files carry goose's
// annotations, and are plain SQL for anything else. Each file records its own
// version in the table schema_version, so the tools can be mixed.
//
// The files are written for a Postgres schema named "oncemill". Under returns
// them for another name.
package schema

import (
	"embed"
	"fmt"
	"io/fs"
	"regexp"
	"strconv"
	"strings"
)

// Default is the name of the Postgres schema where none is given.
const Default = "oncemill"

// Version is the schema version that this build needs. A build also runs on the
// version of the release before it, so that binaries and schema can be upgraded
// one after the other.
const Version = 6

// Oldest is the oldest schema version that this build runs on. On version 5 no message
// can be scheduled and none is kept once it is published, and rows with an ordering key
// are found more slowly.
const Oldest = 5

// FS holds the migration files, named NNNN_name.sql.
//
//go:embed *.sql
var FS embed.FS

// A Migration is one step of the schema's history.
type Migration struct {
	Version int    // the version that the schema has afterwards, from 1
	Name    string // the file's name
	SQL     string // the statements, separated by semicolons
}

// qualifier finds the schema's name where it stands as a name of its own: in
// front of a dot, or at the end of a CREATE SCHEMA.
var qualifier = regexp.MustCompile(`\boncemill(\.|;)`)

// Under returns the migrations, oldest first, for a Postgres schema of the
// given name. "" means Default.
func Under(name string) ([]Migration, error) {
	quoted := Quote(name)
	files, err := fs.Glob(FS, "*.sql")
	if err != nil {
		return nil, err
	}
	migrations := make([]Migration, 0, len(files))
	for _, file := range files { // Glob sorts
		version, err := strconv.Atoi(file[:4])
		if err != nil {
			return nil, fmt.Errorf("oncemill: migration %s: its name must start with a version of four digits", file)
		}
		text, err := fs.ReadFile(FS, file)
		if err != nil {
			return nil, err
		}
		up, _, _ := strings.Cut(string(text), "-- +goose Down")
		sql := qualifier.ReplaceAllStringFunc(up, func(match string) string {
			return quoted + match[len(match)-1:]
		})
		migrations = append(migrations, Migration{Version: version, Name: file, SQL: sql})
	}
	return migrations, nil
}

// Quote returns a Postgres schema's name as it is written in SQL. "" means
// Default.
func Quote(name string) string {
	if name == "" {
		name = Default
	}
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}
