package pgbouncer_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"

	"github.com/oncemill/oncemill/testcontainers/pgbouncer"
	"github.com/oncemill/oncemill/testcontainers/postgres"
)

func ExampleStart() {
	server, err := postgres.Start(context.Background(), postgres.Options{Volatile: true})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	pooler, err := pgbouncer.Start(context.Background(), pgbouncer.Options{Upstream: server.URL("")})
	if err != nil {
		log.Fatal(err)
	}
	defer pooler.Close()
	db, err := sql.Open("postgres", pooler.URL("postgres")+"&binary_parameters=yes")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	var sum int
	err = db.QueryRow(`SELECT 1 + $1::integer`, 2).Scan(&sum)
	fmt.Println(sum, err)
}
