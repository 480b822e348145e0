// Package pgarray writes Postgres arrays as text, to be cast where they are used, as in
// $1::text::text[]: drivers do not agree on how arrays are passed.
package pgarray

import (
	"database/sql"
	"encoding/hex"
	"slices"
	"strings"
)

// An Array collects elements. The zero value is the empty array.
type Array struct{ elements []byte }

// Add adds an element, or NULL.
func (a *Array) Add(element sql.NullString) {
	if element.Valid {
		a.AddText(element.String)
	} else {
		a.addNull()
	}
}

// AddText adds an element.
func (a *Array) AddText(text string) {
	a.next()
	a.elements = append(a.elements, '"')
	for {
		i := strings.IndexAny(text, `\"`)
		if i < 0 {
			break
		}
		a.elements = append(append(a.elements, text[:i]...), '\\', text[i])
		text = text[i+1:]
	}
	a.elements = append(append(a.elements, text...), '"')
}

// AddBytes adds a bytea as text. nil is NULL.
func (a *Array) AddBytes(b []byte) {
	if b == nil {
		a.addNull()
		return
	}
	a.next()
	a.elements = slices.Grow(a.elements, len(`"\\x",`)+hex.EncodedLen(len(b)))
	a.elements = append(a.elements, `"\\x`...)
	a.elements = append(hex.AppendEncode(a.elements, b), '"')
}

func (a *Array) addNull() {
	a.next()
	a.elements = append(a.elements, "NULL"...)
}

// next begins an element.
func (a *Array) next() {
	if len(a.elements) == 0 {
		a.elements = append(a.elements, '{')
	} else {
		a.elements = append(a.elements, ',')
	}
}

// Reset makes it the empty array, and keeps its memory for the next one.
func (a *Array) Reset() { a.elements = a.elements[:0] }

// String returns the array.
func (a *Array) String() string {
	if len(a.elements) == 0 {
		return "{}"
	}
	return string(a.elements) + "}"
}

// Of returns the array of some texts.
func Of(elements []string) string {
	var a Array
	for _, element := range elements {
		a.AddText(element)
	}
	return a.String()
}
