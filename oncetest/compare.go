package oncetest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// effects is what a run has left.
type effects struct {
	tables  []change
	outside int
}

func (e effects) none() bool {
	return e.outside == 0 && !slices.ContainsFunc(e.tables, func(c change) bool { return len(c.added)+len(c.removed) > 0 })
}

// changing are the columns whose values are others in each run, such as ids from a sequence,
// times and random numbers, by table and name. They are not compared.
type changing map[string]bool

func (c changing) add(table int, column string) { c[fmt.Sprint(table, " ", column)] = true }
func (c changing) has(table int, column string) bool {
	return c[fmt.Sprint(table, " ", column)]
}

// A difference is one between a run and one without a fault.
type difference struct {
	kind    kind
	where   string // the table
	what    string
	columns []string // with other values; nil: there is another number of rows
	table   int
}

// compare returns how a run's effects differ from those wanted.
func (c *checker) compare(want, got effects) []difference {
	var all []difference
	for i, t := range c.tables {
		if d, same := c.compareRows(i, want.tables[i], got.tables[i]); !same {
			d.kind, d.where, d.table = differs, t.label, i
			all = append(all, d)
		}
	}
	if want.outside != got.outside {
		all = append(all, difference{kind: beside, what: fmt.Sprintf("Outside counts %s; without a fault %d", times(got.outside, "effect"), want.outside)})
	}
	return all
}

func (c *checker) compareRows(table int, want, got change) (d difference, same bool) {
	if len(want.added) != len(got.added) || len(want.removed) != len(got.removed) {
		d.what = fmt.Sprintf("%s; without a fault %s", cmp.Or(got.String(), "no change"), cmp.Or(want.String(), "none"))
		return d, false
	}
	if slices.Equal(c.plain(table, want.added), c.plain(table, got.added)) && slices.Equal(c.plain(table, want.removed), c.plain(table, got.removed)) {
		return d, true
	}
	for _, side := range [][2][]row{{want.added, got.added}, {want.removed, got.removed}} {
		for _, column := range columnsOf(side[0]) {
			was, is := values(side[0], column), values(side[1], column)
			if !c.changing.has(table, column) && !slices.Equal(was, is) && !slices.Contains(d.columns, column) {
				d.columns = append(d.columns, column)
				d.what = fmt.Sprintf("column %s has %s; without a fault %s", column, short(strings.Join(is, ", ")), short(strings.Join(was, ", ")))
			}
		}
	}
	if d.columns == nil {
		d.what = "its rows have the values in another combination than without a fault"
	}
	return d, false
}

// plain returns rows without what changes, in an order of their own.
func (c *checker) plain(table int, rows []row) []string {
	var all []string
	for _, r := range rows {
		own := map[string]json.RawMessage{}
		for name, value := range r {
			if !c.changing.has(table, name) {
				own[name] = value
			}
		}
		text, _ := json.Marshal(own) // of what was read as JSON
		all = append(all, string(text))
	}
	slices.Sort(all)
	return all
}

func columnsOf(rows []row) []string {
	var names []string
	for _, r := range rows {
		for name := range r {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

func values(rows []row, column string) []string {
	var all []string
	for _, r := range rows {
		all = append(all, string(r[column]))
	}
	slices.Sort(all)
	return all
}

// learn notes what is different in two runs that should have been the same, and returns
// what cannot be explained by values that change.
func (c *checker) learn(first, second effects) []difference {
	var left []difference
	for _, d := range c.compare(first, second) {
		for _, column := range d.columns {
			c.changing.add(d.table, column)
		}
		if d.columns == nil {
			left = append(left, d)
		}
	}
	return left
}

// String says what has changed, and is empty if nothing has.
func (c change) String() string {
	var parts []string
	// An update removes a row, and adds another one.
	updated := min(len(c.added), len(c.removed))
	for _, part := range []struct {
		n    int
		what string
	}{{len(c.added) - updated, "new"}, {updated, "changed"}, {len(c.removed) - updated, "deleted"}} {
		if part.n > 0 {
			parts = append(parts, fmt.Sprint(times(part.n, "row"), " ", part.what))
		}
	}
	return strings.Join(parts, ", ")
}

func times(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprint(n, " ", what)
}

func short(s string) string {
	const most = 80
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}
