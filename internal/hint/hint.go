// Package hint writes the commands that errors and logs tell people to run, so that a
// shell reads them as they are.
package hint

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/oncemill/oncemill/schema"
)

// Resolve is the command that ends a claim in doubt. It lacks the verdict and its note:
// nobody should paste those.
func Resolve(schemaName, consumer, key string, token int64) string {
	command := "oncemill claims resolve"
	if schemaName != "" && schemaName != schema.Default {
		command += " --schema " + Quote(schemaName)
	}
	return fmt.Sprintf("%s --token %d%s %s %s", command, token, dashes(consumer, key), Quote(consumer), Quote(key))
}

// dashes ends the flags, where an argument could be taken for one.
func dashes(args ...string) string {
	for _, arg := range args {
		if strings.HasPrefix(arg, "-") {
			return " --"
		}
	}
	return ""
}

// Quote returns text as a word of a POSIX shell; what cannot be printed as bash, ksh and
// zsh take it.
func Quote(text string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_./:@%+,-", r)
	}
	if text != "" && !strings.ContainsFunc(text, func(r rune) bool { return !plain(r) }) {
		return text
	}
	if utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
	}
	var escaped strings.Builder
	for i := range len(text) {
		switch c := text[i]; {
		case c < ' ' || c > '~':
			fmt.Fprintf(&escaped, `\x%02x`, c)
		case c == '\'' || c == '\\':
			escaped.WriteString(`\` + string(c))
		default:
			escaped.WriteByte(c)
		}
	}
	return "$'" + escaped.String() + "'"
}
