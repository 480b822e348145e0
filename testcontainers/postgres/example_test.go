package postgres_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"

	_ "github.com/lib/pq"

	"github.com/oncemill/oncemill/testcontainers/postgres"
)

// A server crashes and comes back with what was committed.
func Example() {
	ctx := context.Background()
	server, err := postgres.Start(ctx, postgres.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()

	db, err := sql.Open("postgres", server.URL("postgres"))
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "CREATE TABLE effects AS SELECT 1 AS id"); err != nil {
		log.Fatal(err)
	}
	if err := server.Kill(); err != nil {
		log.Fatal(err)
	}
	if err := server.Start(ctx); err != nil {
		log.Fatal(err)
	}
	for db.PingContext(ctx) != nil { // until the pool has dropped its dead connection
	}
	var rows int
	if err := db.QueryRowContext(ctx, "SELECT count(*) FROM effects").Scan(&rows); err != nil {
		log.Fatal(err)
	}
	fmt.Println(rows)
	// Output: 1
}

// The standby takes over with all that was committed.
func ExamplePair() {
	ctx := context.Background()
	pair, err := postgres.StartPair(ctx, postgres.PairOptions{Volatile: true})
	if err != nil {
		log.Fatal(err)
	}
	defer pair.Close()

	db, err := sql.Open("postgres", pair.URL("postgres"))
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "CREATE TABLE effects AS SELECT 1 AS id"); err != nil {
		log.Fatal(err)
	}
	if err := pair.Failover(ctx); err != nil {
		log.Fatal(err)
	}
	for db.PingContext(ctx) != nil { // until the pool has found the new primary
	}
	var rows int
	if err := db.QueryRowContext(ctx, "SELECT count(*) FROM effects").Scan(&rows); err != nil {
		log.Fatal(err)
	}
	fmt.Println(rows)
	if err := pair.Rebuild(ctx); err != nil { // and COMMITs wait for a standby again
		log.Fatal(err)
	}
	// Output: 1
}
