package oncemill

import "strings"

// controlsTransaction reports whether a query holds a statement that would
// begin or end the transaction. It looks at the first words of each statement
// of the query, since drivers send several at once when there are no arguments.
// Savepoints are the handler's to use. Texts are read as they are with
// standard_conforming_strings, which has been the default since Postgres 9.1.
//
// It stops mistakes, not an attacker. It may refuse what is harmless: a CREATE
// FUNCTION with a body from BEGIN ATOMIC to END.
func controlsTransaction(query string) bool {
	for rest := skipSpace(query); rest != ""; rest = skipSpace(nextStatement(rest)) {
		word, after := firstWord(rest)
		switch word {
		case "BEGIN", "START", "COMMIT", "END", "ABORT":
			return true
		case "PREPARE":
			if second, _ := firstWord(skipSpace(after)); second == "TRANSACTION" {
				return true
			}
		case "ROLLBACK":
			if !rollsBackToSavepoint(after) {
				return true
			}
		}
	}
	return false
}

// rollsBackToSavepoint looks at what follows ROLLBACK.
func rollsBackToSavepoint(after string) bool {
	word, after := firstWord(skipSpace(after))
	if word == "WORK" || word == "TRANSACTION" {
		word, _ = firstWord(skipSpace(after))
	}
	return word == "TO"
}

// firstWord returns the letters that s starts with, in capitals, and the rest.
func firstWord(s string) (word, rest string) {
	n := 0
	for n < len(s) && (s[n]|0x20 >= 'a' && s[n]|0x20 <= 'z') {
		n++
	}
	if n > len("TRANSACTION") {
		return "", s[n:]
	}
	return strings.ToUpper(s[:n]), s[n:]
}

// skipSpace drops white space, comments and empty statements.
func skipSpace(s string) string {
	for s != "" {
		switch {
		case strings.IndexByte(" \t\r\n\f\v;", s[0]) >= 0:
			s = s[1:]
		case strings.HasPrefix(s, "--"):
			s = skipLineComment(s)
		case strings.HasPrefix(s, "/*"):
			s = skipBlockComment(s)
		default:
			return s
		}
	}
	return ""
}

// nextStatement returns what follows the first semicolon of s that is not
// quoted or commented out.
func nextStatement(s string) string {
	escapes := false // the last text in quotes was one with escapes
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == ';':
			return s[i+1:]
		case c == '\'':
			if i > 0 && s[i-1]|0x20 == 'e' && (i == 1 || !isIdentifier(s[i-2])) {
				escapes = true
			}
			i += quotedLen(s[i:], escapes)
			continue
		case c == '"':
			i += quotedLen(s[i:], false)
		case c == '$' && (i == 0 || !endsIdentifier(s[i-1])):
			i += dollarQuotedLen(s[i:])
		case strings.HasPrefix(s[i:], "--"):
			i = len(s) - len(skipLineComment(s[i:]))
		case strings.HasPrefix(s[i:], "/*"):
			i = len(s) - len(skipBlockComment(s[i:]))
		case strings.IndexByte(" \t\r\n\f\v", c) >= 0:
			i++ // a text may be continued after a line break, and keeps its kind
		default:
			escapes = false
			i++
		}
	}
	return ""
}

// skipLineComment drops the comment that s starts with.
func skipLineComment(s string) string {
	end := strings.IndexAny(s, "\r\n") // Postgres takes either
	if end < 0 {
		return ""
	}
	return s[end:]
}

func isIdentifier(c byte) bool {
	return c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || c == '_' || c >= 0x80
}

// endsIdentifier reports whether c can be the last byte of an identifier, which
// may have dollar signs but not begin with one.
func endsIdentifier(c byte) bool { return isIdentifier(c) || c == '$' }

// quotedLen returns the length of the quoted text that s starts with. A doubled
// quote needs no care: it reads as two texts side by side.
func quotedLen(s string, escapes bool) int {
	for i := 1; i < len(s); i++ {
		if escapes && s[i] == '\\' {
			i++
		} else if s[i] == s[0] {
			return i + 1
		}
	}
	return len(s)
}

// dollarQuotedLen returns the length of the dollar-quoted text that s starts
// with, or 1 if it is only a dollar sign, as in $1.
func dollarQuotedLen(s string) int {
	end := 1
	for end < len(s) && isIdentifier(s[end]) {
		end++
	}
	if end == len(s) || s[end] != '$' || s[1] >= '0' && s[1] <= '9' {
		return 1
	}
	tag := s[:end+1]
	close := strings.Index(s[len(tag):], tag)
	if close < 0 {
		return len(s)
	}
	return len(tag) + close + len(tag)
}

// skipBlockComment drops the comment that s starts with. Postgres nests them.
func skipBlockComment(s string) string {
	depth := 0
	for i := 0; i+1 < len(s); {
		switch s[i : i+2] {
		case "/*":
			depth++
			i += 2
		case "*/":
			depth--
			i += 2
			if depth == 0 {
				return s[i:]
			}
		default:
			i++
		}
	}
	return ""
}
