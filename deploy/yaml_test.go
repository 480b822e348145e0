package deploy_test

import (
	"os"
	"strings"
	"testing"
)

// A node is a value of a manifest: a scalar, a list, or fields.
type node struct {
	scalar string
	items  []*node
	fields map[string]*node
}

// at follows the names of fields. What is not there is an empty node.
func (n *node) at(path ...string) *node {
	for _, name := range path {
		next, ok := n.fields[name]
		if !ok {
			return new(node)
		}
		n = next
	}
	return n
}

// manifests reads the documents of a file.
func manifests(t *testing.T, file string) (all []*node) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		r := &yamlReader{t: t, file: file}
		for line := range strings.SplitSeq(document, "\n") {
			line, _, _ = strings.Cut(line, " #")
			if line = strings.TrimRight(line, " "); line != "" && line[0] != '#' && strings.TrimLeft(line, " ")[0] != '#' {
				r.lines = append(r.lines, line)
			}
		}
		all = append(all, r.block(0))
		if len(r.lines) > 0 {
			t.Fatalf("%s: cannot read %q", file, r.lines[0])
		}
	}
	return all
}

// A yamlReader reads as much of YAML as the manifests are written in: blocks of fields and
// lists, and plain scalars.
type yamlReader struct {
	t     *testing.T
	file  string
	lines []string
}

// next returns the next line without its indentation, if it is indented so far.
func (r *yamlReader) next(indent int) (line string, ok bool) {
	if len(r.lines) == 0 || len(r.lines[0])-len(strings.TrimLeft(r.lines[0], " ")) != indent {
		return "", false
	}
	return r.lines[0][indent:], true
}

func (r *yamlReader) block(indent int) *node {
	n := &node{fields: make(map[string]*node)}
	for {
		line, ok := r.next(indent)
		if !ok {
			return n
		}
		if item, ok := strings.CutPrefix(line, "- "); ok {
			if name, _, isField := strings.Cut(item, ":"); !isField || strings.ContainsAny(name, "-= ") {
				r.lines = r.lines[1:]
				n.items = append(n.items, r.scalar(item))
				continue
			}
			r.lines[0] = strings.Repeat(" ", indent+2) + item
			n.items = append(n.items, r.block(indent+2))
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if _, twice := n.fields[name]; !ok || twice {
			r.t.Fatalf("%s: %q is no field, or is there twice", r.file, line)
		}
		r.lines = r.lines[1:]
		if value = strings.TrimSpace(value); value != "" {
			n.fields[name] = r.scalar(value)
		} else {
			n.fields[name] = r.block(indent + 2)
		}
	}
}

func (r *yamlReader) scalar(value string) *node {
	if strings.ContainsAny(value[:1], `[{&*!|>%@"'`) {
		r.t.Fatalf("%s: %s is more YAML than this test reads", r.file, value)
	}
	return &node{scalar: value}
}
