// Package oneline makes the words of strangers fit for a line of a log or of a table.
package oneline

import (
	"strings"
	"unicode"
)

// Of returns text without line breaks, control characters and invisible ones, cut after
// most bytes.
func Of(text string, most int) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r) || unicode.Is(unicode.Cf, r)
	}), " ")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}
