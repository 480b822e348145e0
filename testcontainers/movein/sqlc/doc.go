// Package sqlc holds what sqlc makes of the queries in docs/moving-in.md: with
// database/sql in db, with pgx in pgxdb.
package sqlc

//go:generate sh -c "go run -C ../../.. ./cmd/oncemill migrate --print >oncemill.sql"
//go:generate go run github.com/sqlc-dev/sqlc/cmd/sqlc@v1.30.0 generate
//go:generate rm oncemill.sql
