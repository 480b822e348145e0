package oncemill

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
)

// statements holds the SQL of the hot path, and what handlers run again and again, prepared
// once on the sql.DB: lib/pq needs two round trips for a statement with arguments that is
// not prepared.
type statements struct {
	db     *sql.DB
	schema string // quoted
	fill   *strings.Replacer

	mu        sync.Mutex
	prepared  map[string]*sql.Stmt
	preparing map[string]chan struct{} // closed when that has ended
	writing   map[string]*writable     // of prepared queries, what can be deferred
	seen      map[string]int           // how often handlers have run what is not prepared
	wanted    []string                 // to be prepared before the next transaction
}

const (
	// prepareAfter is how often handlers run a query before it is prepared.
	prepareAfter = 3

	// mostSeen is how many queries of handlers are told apart, and mostPrepared how many
	// are prepared. A handler that puts values into its texts has more than are of use.
	mostSeen, mostPrepared = 1000, 200
)

func (s *statements) init(db *sql.DB, quotedSchema string) {
	s.db, s.schema = db, quotedSchema
	inText := "'" + strings.ReplaceAll(quotedSchema, "'", "''") + "."
	s.fill = strings.NewReplacer("'{schema}.", inText, "{schema}", quotedSchema) // both at once: there may be {schema} in the name
	s.prepared, s.preparing = make(map[string]*sql.Stmt), make(map[string]chan struct{})
	s.seen, s.writing = make(map[string]int), make(map[string]*writable)
}

// in returns query with the schema's name filled in for {schema}, also where that stands
// in a text, as in nextval('{schema}.tokens').
func (s *statements) in(query string) string {
	return s.fill.Replace(query)
}

// prepare returns query prepared. It may take a connection from the pool, so a
// caller must not hold one yet: with a pool of one that would never end.
func (s *statements) prepare(ctx context.Context, query string) (*sql.Stmt, error) {
	return s.prepareFor(ctx, ctx, query)
}

// prepareFor is prepare for a caller that may go. What it has begun to prepare goes on until
// work ends: it is for all who come later.
func (s *statements) prepareFor(caller, work context.Context, query string) (*sql.Stmt, error) {
	return s.prepareText(caller, work, query, s.in(query))
}

// prepareText has each query prepared once, also where several want it at a time: a
// statement that is too many has to be closed, and database/sql holds the lock of all the
// DB while the server is asked to. Through a pooler whose sessions are all in transactions,
// which need that lock to go on, the server would never answer.
func (s *statements) prepareText(caller, work context.Context, query, text string) (*sql.Stmt, error) {
	for {
		s.mu.Lock()
		stmt, preparing := s.prepared[query], s.preparing[query]
		if stmt == nil && caller.Err() != nil {
			s.mu.Unlock()
			return nil, context.Cause(caller)
		}
		if stmt == nil && preparing == nil {
			done := make(chan struct{})
			s.preparing[query] = done
			s.mu.Unlock()
			return s.prepareOnce(work, query, text, done)
		}
		s.mu.Unlock()
		if stmt != nil {
			return stmt, nil
		}
		select {
		case <-preparing:
		case <-caller.Done(): // seen above
		}
	}
}

func (s *statements) prepareOnce(ctx context.Context, query, text string, done chan struct{}) (stmt *sql.Stmt, err error) {
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.preparing, query)
		close(done)
		if stmt != nil {
			s.prepared[query] = stmt
		}
	}()
	return s.db.PrepareContext(ctx, text)
}

// writable returns what deferred needs to know of a handler's query, nil if it is not for it.
func (s *statements) writable(query string) *writable {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writing[query]
}

// ready returns a handler's query prepared, or nil. It is prepared when it was run a few
// times and the next transaction begins: in this one there is no connection to spare.
func (s *statements) ready(query string) *sql.Stmt {
	s.mu.Lock()
	defer s.mu.Unlock()
	if stmt := s.prepared[query]; stmt != nil {
		return stmt
	}
	n, known := s.seen[query]
	if !known && len(s.seen) >= mostSeen {
		return nil
	}
	s.seen[query] = n + 1
	if n+1 == prepareAfter && len(s.prepared)+len(s.wanted) < mostPrepared {
		s.wanted = append(s.wanted, query)
	}
	return nil
}

// prepareWanted prepares what handlers have run a few times, to be deferred too if that is
// possible. What cannot be prepared is not tried again.
func (s *statements) prepareWanted(ctx context.Context, deferring bool) {
	s.mu.Lock()
	wanted := s.wanted
	s.wanted = nil
	s.mu.Unlock()
	for _, query := range wanted {
		if _, err := s.prepareText(ctx, ctx, query, query); err != nil || !deferring {
			continue
		}
		w := describe(ctx, s.db, query)
		s.mu.Lock()
		s.writing[query] = w
		s.mu.Unlock()
	}
}

// forget has a handler's query not be prepared any more: the tables that it was
// prepared for have changed.
func (s *statements) forget(query string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.writing, query)
	delete(s.prepared, query) // others may be using it, so it is not closed
}

// txStatements are prepared statements in one transaction.
type txStatements struct {
	all *statements
	tx  *sql.Tx
	own map[string]*sql.Stmt
}

// get returns a handler's query for this transaction, or nil if it is not prepared.
func (t *txStatements) get(ctx context.Context, query string) *sql.Stmt {
	if own := t.own[query]; own != nil {
		return own
	}
	stmt := t.all.ready(query)
	if stmt == nil {
		return nil
	}
	if t.own == nil {
		t.own = make(map[string]*sql.Stmt)
	}
	own := t.tx.StmtContext(ctx, stmt)
	t.own[query] = own
	return own
}

// failed looks at the error of a prepared query. Where the query would have succeeded if it
// had not been prepared, it says so.
func (t *txStatements) failed(query string, err error) error {
	switch sqlState(err) {
	case "0A000", "26000", "42804", "42883": // another type of result, a statement that is gone, other types of arguments
		delete(t.own, query)
		t.all.forget(query)
		return fmt.Errorf("%w: %w", errStale, err)
	}
	return err
}

// errStale means that a query was prepared for tables that have changed since. It is not
// prepared any more.
var errStale = errors.New("query was prepared before its tables changed")
