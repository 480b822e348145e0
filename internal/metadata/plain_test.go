package metadata_test

import (
	"maps"
	"testing"

	"github.com/oncemill/oncemill/internal/metadata"
)

// Whatever the text is, both ways of reading it come to the same.
func FuzzDecodeText(f *testing.F) {
	for _, text := range []string{
		`{}`, `{"a": "b"}`, `{"a": "b", "c": "d"}`, `{"a": "", "": "b"}`, `{"a": "\": \""}`, `{"a": "b\\"}`, `{"a": "\u0041"}`,
		`{"a": 1}`, `{"a": null, "b": "c"}`, `{"a": {"b": "c"}}`, `{"a": ["b", "c"]}`, `{"oncemill:base64": {"YQ==": "Yg=="}}`,
		`{"oncemill:base64": "no object"}`, `{"a": "b"`, `{"a": "b"}}`, `{"a": "b", }`, `{"a"; "b"}`, `{`, ``, `[]`, `{"ä": "ö \", \""}`,
		`{"a": "}", "b": "{"}`, `{"a": ": ", "b": ", "}`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		want, wantErr := metadata.Decode([]byte(text))
		got, err := metadata.DecodeText(text)
		switch {
		case wantErr == nil && (err != nil || !maps.Equal(got, want)):
			t.Errorf("%q is %q (%v), want %q", text, got, err, want)
		case wantErr != nil && err == nil && !jsonWouldNot(text):
			t.Errorf("%q is %q, want the error %v", text, got, wantErr)
		}
	})
}

// jsonWouldNot reports whether a text has bytes that jsonb never has in strings:
// control characters, which it escapes.
func jsonWouldNot(text string) bool {
	for i := range len(text) {
		if text[i] < ' ' {
			return true
		}
	}
	return false
}
