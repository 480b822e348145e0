package oncemill

import (
	"errors"
	"fmt"
	"strings"
)

// A share is one handler's part in a transaction that holds the effects of others too. What
// could undo or commit theirs is refused: the handler will run again with a transaction
// of its own.
type share struct {
	savepoints []string // the handler's own
	refused    string   // what it wanted to do; "": nothing
}

// errShared is what a handler gets for what it may do only in its own transaction.
var errShared = errors.New("oncemill: not in a transaction that is shared with other messages; the handler runs again with one of its own")

func (s *share) refuse(what string) error {
	s.refused = what
	return fmt.Errorf("%w (%s)", errShared, what)
}

// check refuses to roll back to a savepoint that another handler has set.
func (s *share) check(query string) error {
	if !mayHoldSavepoints(query) {
		return nil
	}
	for rest := skipSpace(query); rest != ""; rest = skipSpace(nextStatement(rest)) {
		word, after := firstWord(rest)
		switch word {
		case "SAVEPOINT":
			s.savepoints = append(s.savepoints, savepointName(after))
		case "ROLLBACK", "RELEASE":
			i := s.lastSavepoint(savepointName(after))
			if i < 0 {
				return s.refuse(word + " of a savepoint that is not its own")
			}
			if word == "ROLLBACK" {
				i++ // it stays
			}
			s.savepoints = s.savepoints[:i]
		}
	}
	return nil
}

func (s *share) lastSavepoint(name string) int {
	for i := len(s.savepoints) - 1; i >= 0; i-- {
		if s.savepoints[i] == name {
			return i
		}
	}
	return -1
}

// mayHoldSavepoints spares most queries a closer look.
func mayHoldSavepoints(query string) bool {
	if len(query) > 0 && strings.IndexByte(query, ';') < 0 {
		switch word, _ := firstWord(skipSpace(query)); word {
		case "SAVEPOINT", "ROLLBACK", "RELEASE":
		default:
			return false
		}
	}
	return true
}

// savepointName returns the name in what follows SAVEPOINT, ROLLBACK or RELEASE, as
// Postgres compares it.
func savepointName(after string) string {
	for {
		after = skipSpace(after)
		if strings.HasPrefix(after, `"`) {
			return after[:quotedLen(after, false)]
		}
		end := 0
		for end < len(after) && endsIdentifier(after[end]) {
			end++
		}
		name := strings.ToLower(after[:end])
		switch name {
		case "work", "transaction", "to", "savepoint":
			after = after[end:]
		default:
			return name
		}
	}
}
