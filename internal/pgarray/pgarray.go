// Package pgarray writes Postgres arrays as text, to be cast where they are used, as in
// $1::text::text[]: drivers do not agree on how arrays are passed.
package pgarray

import (
	"database/sql"
	"strings"
)

// An Array collects elements. The zero value is the empty array.
type Array struct{ elements strings.Builder }

var escape = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// Add adds an element, or NULL.
func (a *Array) Add(element sql.NullString) {
	if a.elements.Len() > 0 {
		a.elements.WriteByte(',')
	}
	if !element.Valid {
		a.elements.WriteString("NULL")
		return
	}
	a.elements.WriteByte('"')
	_, _ = escape.WriteString(&a.elements, element.String)
	a.elements.WriteByte('"')
}

// String returns the array.
func (a *Array) String() string { return "{" + a.elements.String() + "}" }

// Of returns the array of some texts.
func Of(elements []string) string {
	var a Array
	for _, element := range elements {
		a.Add(sql.NullString{String: element, Valid: true})
	}
	return a.String()
}
