package oncemill

import (
	"context"
	"database/sql"
	"slices"
	"strings"
	"sync"
)

// statements holds the SQL of the hot path, prepared once on the sql.DB: lib/pq
// needs two round trips for a statement with arguments that is not prepared.
type statements struct {
	db     *sql.DB
	schema string // quoted

	mu       sync.Mutex
	prepared map[string]*sql.Stmt
	wanted   []string // to be prepared before the next transaction
}

func (s *statements) init(db *sql.DB, quotedSchema string) {
	s.db, s.schema = db, quotedSchema
	s.prepared = make(map[string]*sql.Stmt)
}

// in returns query with the schema's name filled in for {schema}, also where that stands
// in a text, as in nextval('{schema}.tokens').
func (s *statements) in(query string) string {
	inText := "'" + strings.ReplaceAll(s.schema, "'", "''") + "."
	return strings.ReplaceAll(strings.ReplaceAll(query, "'{schema}.", inText), "{schema}", s.schema)
}

// prepare returns query prepared. It may take a connection from the pool, so a
// caller must not hold one yet: with a pool of one that would never end.
func (s *statements) prepare(ctx context.Context, query string) (*sql.Stmt, error) {
	s.mu.Lock()
	stmt := s.prepared[query]
	s.mu.Unlock()
	if stmt != nil {
		return stmt, nil
	}
	stmt, err := s.db.PrepareContext(ctx, s.in(query))
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	other := s.prepared[query]
	if other == nil {
		s.prepared[query] = stmt
	}
	s.mu.Unlock()
	if other != nil { // another goroutine was quicker
		_ = stmt.Close()
		return other, nil
	}
	return stmt, nil
}

// ready returns query prepared, or nil; then it will be when the next transaction begins.
// For queries of other packages, which say so only in a transaction.
func (s *statements) ready(query string) *sql.Stmt {
	s.mu.Lock()
	defer s.mu.Unlock()
	stmt := s.prepared[query]
	if stmt == nil && !slices.Contains(s.wanted, query) {
		s.wanted = append(s.wanted, query)
	}
	return stmt
}

// prepareWanted prepares what was asked for. What cannot be prepared will fail, if it
// does, where it is run.
func (s *statements) prepareWanted(ctx context.Context) {
	s.mu.Lock()
	wanted := s.wanted
	s.wanted = nil
	s.mu.Unlock()
	for _, query := range wanted {
		_, _ = s.prepare(ctx, query)
	}
}
