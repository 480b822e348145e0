package oncemill

import (
	"database/sql"
	"errors"
	"fmt"
	"strings"
)

// A share is one handler's part in a transaction that holds the effects of others too. What
// could undo theirs, or would last into their turns, is refused: the handler runs again with
// a transaction of its own.
type share struct {
	refused string    // what it wanted to do; "": nothing
	asked   bool      // it has asked for a result that was deferred
	pending *deferred // nil: each statement is sent at once

	// What it has of the transaction, to be taken back when its turn is over.
	rows  *sql.Rows
	row   *sql.Row
	stmts []*sql.Stmt
}

// errShared is what a handler gets for what it may do only in its own transaction.
var errShared = errors.New("oncemill: not in a transaction that is shared with other messages; the handler runs again with one of its own")

func (s *share) refuse(what string) error {
	s.refused = what
	return fmt.Errorf("%w (%s)", errShared, what)
}

// check refuses settings, which the next handler would run under, savepoints, at which
// what was published cannot be undone, and tables that the next one would find.
func (s *share) check(query string) error {
	for rest := skipSpace(query); rest != ""; rest = skipSpace(nextStatement(rest)) {
		switch word, _ := firstWord(rest); word {
		case "SET", "RESET", "DISCARD", "SAVEPOINT", "ROLLBACK", "RELEASE", "CREATE", "DECLARE", "DO":
			return s.refuse(word)
		}
	}
	if containsFold(query, "set_config") {
		return s.refuse("set_config")
	}
	return nil
}

// containsFold reports whether s contains a word in small letters, in any letters.
func containsFold(s, word string) bool {
	for ; len(s) >= len(word); s = s[1:] {
		if s[0]|0x20 == word[0] && strings.EqualFold(s[:len(word)], word) {
			return true
		}
	}
	return false
}

// takeBack closes what a handler has left open, as COMMIT would. It reports whether rows
// were open, or were closed because their context had ended.
func (s *share) takeBack() (open bool) {
	if s.row != nil {
		_ = s.row.Scan() // which closes it
	}
	if s.rows != nil {
		_, err := s.rows.Columns()
		open = err == nil || !strings.Contains(err.Error(), "Rows are closed")
		_ = s.rows.Close()
	}
	for _, stmt := range s.stmts {
		_ = stmt.Close()
	}
	return open
}
