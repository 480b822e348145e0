// Package chart writes SVG, as the charts of the benchmarks are drawn with it.
package chart

import (
	"encoding/xml"
	"fmt"
	"strings"
)

// Document is a picture of a size in pixels.
func Document(width, height int, body string) string {
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">
<rect width="100%%" height="100%%" fill="white"/>
%s</svg>
`, width, height, width, height, body)
}

// Text writes a text at a place.
func Text(body *strings.Builder, x, y int, attributes, content string) {
	fmt.Fprintf(body, "<text x=\"%d\" y=\"%d\" %s>%s</text>\n", x, y, attributes, Escaped(content))
}

// Escaped is a text as XML has it.
func Escaped(s string) string {
	var out strings.Builder
	_ = xml.EscapeText(&out, []byte(s)) // of a Builder, which takes everything
	return out.String()
}
