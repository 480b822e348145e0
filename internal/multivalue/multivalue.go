// Package multivalue puts headers that have several values into Watermill's
// metadata, which has one value for a key, and makes one header of them again.
//
// The first value is under the header's name, the others under name#2, name#3
// and so on, leaving out names that are taken.
package multivalue

import (
	"strconv"
	"strings"
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

// Folded reports whether a metadata key is a further value of a header: "Name#3"
// is, provided that "Name" and "Name#2" are there too, and that "Name" is not such
// a value itself.
func Folded(metadata map[string]string, key string) bool {
	mark := strings.LastIndexByte(key, '#')
	if mark < 1 {
		return false
	}
	name := key[:mark]
	n, err := strconv.Atoi(key[mark+1:])
	if err != nil || n < 2 || Numbered(name, n) != key {
		return false
	}
	for i := 2; i < n; i++ {
		if _, ok := metadata[Numbered(name, i)]; !ok {
			return false
		}
	}
	_, ok := metadata[name]
	return ok && !Folded(metadata, name)
}

// Values returns all values of the header whose first one is under name.
func Values(metadata map[string]string, name string) []string {
	values := []string{metadata[name]}
	for n := 2; ; n++ {
		further, ok := metadata[Numbered(name, n)]
		if !ok {
			return values
		}
		values = append(values, further)
	}
}
