package multivalue_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/oncemill/oncemill/internal/multivalue"
)

// What is spread over metadata comes together again, whatever the headers are
// called.
func TestValuesComeTogetherAgain(t *testing.T) {
	t.Parallel()
	headers := map[string][]string{
		"h": {"1", "2", "3"}, "h#2": {"own"}, "h#4": {"own", "further"}, "single": {""}, "#2": {"a", "b"}, "x#1": {"y"}, "x#02": {"z"},
	}
	metadata := make(map[string]string)
	for name, values := range headers {
		metadata[name] = values[0]
	}
	for name, values := range headers {
		multivalue.Spread(metadata, name, values[1:], func(name string) bool { return headers[name] != nil })
	}
	if metadata["h#2"] != "own" || metadata["h#3"] != "2" {
		t.Errorf("metadata %q", metadata)
	}
	// A header that is called like another one's further value cannot be told from
	// it any more; all values are there nevertheless.
	var sent, got []string
	for _, values := range headers {
		sent = append(sent, values...)
	}
	for _, values := range multivalue.Headers(metadata) {
		got = append(got, values...)
	}
	slices.Sort(sent)
	slices.Sort(got)
	if !slices.Equal(sent, got) {
		t.Errorf("sent %q, got %q from %q", sent, got, metadata)
	}
}

func TestOnlyFurtherValuesAreFolded(t *testing.T) {
	t.Parallel()
	metadata := map[string]string{"a": "", "a#2": "", "a#3": "", "a#5": "", "b#2": "", "a#x": "", "a#1": "", "#2": "", "": ""}
	got := maps.Collect(multivalue.Headers(metadata))
	want := map[string][]string{"a": {"", "", ""}, "a#5": {""}, "b#2": {""}, "a#x": {""}, "a#1": {""}, "#2": {""}, "": {""}}
	if !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("headers: %q, want %q", got, want)
	}
}

// Each key is looked up for the header before it, and not for all before it: then this
// would take many minutes.
func TestManyValuesTakeLittleTime(t *testing.T) {
	t.Parallel()
	const n = 100_000
	metadata := map[string]string{"v": ""}
	multivalue.Spread(metadata, "v", make([]string, n), func(string) bool { return false })
	for name, values := range multivalue.Headers(metadata) {
		if name != "v" || len(values) != n+1 {
			t.Errorf("header %q has %d values", name, len(values))
		}
	}
}
