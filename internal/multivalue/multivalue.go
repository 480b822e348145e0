// Package multivalue puts headers that have several values into Watermill's
// metadata, which has one value for a key, and makes one header of them again.
//
// The first value is under the header's name, the others under name#2, name#3
// and so on, leaving out names that are taken.
package multivalue

import (
	"iter"
	"maps"
	"slices"
	"strconv"
)

// Numbered is the metadata key of a header's n-th value, n > 1.
func Numbered(name string, n int) string { return name + "#" + strconv.Itoa(n) }

// Spread writes the further values of a header into metadata: all but the first.
// taken tells which names other headers have.
func Spread(metadata map[string]string, name string, further []string, taken func(name string) bool) {
	n := 2
	for _, value := range further {
		for ; taken(Numbered(name, n)); n++ {
		}
		metadata[Numbered(name, n)] = value
		n++
	}
}

// Headers returns the headers that metadata makes, in the order of their names. "Name#3"
// is a further value of the header "Name", provided that "Name" and "Name#2" are there
// too, and that "Name" is not such a value itself.
//
// It looks at each key twice, however many values a header has: a message may come with a
// hundred thousand.
func Headers(metadata map[string]string) iter.Seq2[string, []string] {
	return func(yield func(string, []string) bool) {
		folded := make(map[string]bool)
		for _, name := range slices.Sorted(maps.Keys(metadata)) { // a name comes before its numbered ones
			if folded[name] {
				continue
			}
			values := []string{metadata[name]}
			for n := 2; name != ""; n++ {
				key := Numbered(name, n)
				further, ok := metadata[key]
				if !ok {
					break
				}
				folded[key] = true
				values = append(values, further)
			}
			if !yield(name, values) {
				return
			}
		}
	}
}
