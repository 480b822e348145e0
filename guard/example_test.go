package guard_test

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/guard"
)

// A guard as a server of its own. `oncemill guard` is this, with flags.
func ExampleHandler() {
	ctx := context.Background()
	connector, err := pq.NewConnector(os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	db := sql.OpenDB(oncemill.PlanByIndex(connector))
	db.SetMaxOpenConns(16)
	db.SetMaxIdleConns(16)
	handler := &guard.Handler{
		Inbox:      &oncemill.Inbox{DB: db, ClaimBatch: 64, DrainTimeout: 5 * time.Second, Retention: 365 * 24 * time.Hour},
		Tenants:    &guard.Tenants{File: "/etc/oncemill/tenants.json"},
		AuditToken: os.Getenv("AUDIT_TOKEN"),
	}
	if err := handler.Check(ctx); err != nil {
		log.Fatal(err)
	}
	go func() { log.Fatal(handler.Run(ctx)) }()
	server := &http.Server{Addr: ":8402", Handler: handler, ReadTimeout: 15 * time.Second}
	log.Fatal(server.ListenAndServeTLS("guard.crt", "guard.key"))
}

// A guard beside other things that a server does.
func ExampleHandler_ServeHTTP() {
	var db *sql.DB // that of the service
	mux := http.NewServeMux()
	mux.Handle("/guard/", http.StripPrefix("/guard", &guard.Handler{Inbox: &oncemill.Inbox{DB: db}}))
}

// Claim, make the effect, settle: from any language, here with net/http alone.
func ExampleHandler_claim() {
	post := func(path, token, body string) string {
		request, err := http.NewRequest(http.MethodPost, "http://127.0.0.1:8402"+path, strings.NewReader(body))
		if err != nil {
			return ""
		}
		request.Header.Set("X-SafeAgent-Settlement-Token", token)
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return ""
		}
		defer response.Body.Close()
		answer, _ := io.ReadAll(response.Body)
		return string(answer)
	}
	fmt.Println(post("/claim", "", `{"request_id":"order-7","action":"charge","nonce":"Zk3vY0m8Jq4W1cXb7TnR5g"}`))
	// {"status":"PROCEED","request_id":"order-7","settlement_token":"...", ...}: make the effect, then
	fmt.Println(post("/settle/order-7", "the settlement_token", `{"result":{"charge":"ch_1"}}`))
}
