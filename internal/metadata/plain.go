package metadata

import "strings"

// DecodeText is Decode for what nearly all rows have, members that are strings
// without escapes, and takes a tenth of its time for them.
func DecodeText(text string) (map[string]string, error) {
	if metadata, ok := decodePlain(text); ok {
		return metadata, nil
	}
	return Decode([]byte(text))
}

// decodePlain reads what Postgres writes: one space after each colon and comma.
func decodePlain(text string) (map[string]string, bool) {
	rest, ok := strings.CutPrefix(text, "{")
	if !ok || strings.IndexByte(text, '\\') >= 0 {
		return nil, false
	}
	metadata := make(map[string]string, 1+strings.Count(rest, `": "`))
	if rest == "}" {
		return metadata, true
	}
	for {
		var key, value string
		if key, rest, ok = quoted(rest); !ok || key == binaryMember {
			return nil, false
		}
		if rest, ok = strings.CutPrefix(rest, ": "); !ok {
			return nil, false
		}
		if value, rest, ok = quoted(rest); !ok {
			return nil, false
		}
		metadata[key] = value
		if rest == "}" {
			return metadata, true
		}
		if rest, ok = strings.CutPrefix(rest, ", "); !ok {
			return nil, false
		}
	}
}

// quoted returns the string that a text without escapes begins with, and the rest.
func quoted(text string) (s, rest string, ok bool) {
	if text, ok = strings.CutPrefix(text, `"`); !ok {
		return "", "", false
	}
	return strings.Cut(text, `"`)
}
