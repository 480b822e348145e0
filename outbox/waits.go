package outbox

import (
	"maps"
	"math"
	"slices"
)

// A partition is what an ordered knows of one. Below the floor there is no row, and will
// be none. From the floor to the tail there are only rows of keys that wait, so fetches
// begin at the tail: those of a key that waits for long may be many.
type partition struct {
	floor, tail int64
	waits       map[string]int64 // keys, and the row that is deferred or parked of each
	crowded     bool             // there are so many rows of these keys behind the tail that they are left out

	deep  string // a key that has most of the rows; left out every other time, for those behind its rows
	shunt bool   // it is left out this time
}

// but are the keys that a fetch leaves out.
func (p *partition) but(aside *aside) (keys []string) {
	if p.shunt = p.deep != "" && !p.shunt; p.shunt {
		keys = append(keys, p.deep)
	}
	if !p.crowded {
		return keys
	}
	for key := range p.waits {
		if len(keys) < mostLeftOut {
			keys = append(keys, key)
		}
	}
	return slices.AppendSeq(keys, maps.Keys(aside.names))
}

// free has those keys wait no more whose row is not deferred or parked still. Their rows
// are all over the partition.
func (p *partition) free(still map[int64]bool) (freed bool) {
	for key, id := range p.waits {
		if !still[id] {
			delete(p.waits, key)
			freed = true
		}
	}
	if freed {
		p.tail, p.crowded = p.floor, false
	}
	return freed
}

// raise raises the tail, and the floor if nothing waits.
func (p *partition) raise(to int64) {
	if to > p.tail {
		p.tail, p.crowded = to, false
	}
	if len(p.waits) == 0 {
		p.floor = p.tail
	}
}

// A first is the first row of a partition whose key does not wait, if there is one among
// so many.
type first struct {
	id         int64
	found      bool
	rows, most int
	last       int64
}

// add takes a row. They come in the order of their ids.
func (f *first) add(id int64, waits bool) {
	f.rows, f.last = f.rows+1, id
	if !waits && !f.found {
		f.id, f.found = id, true
	}
}

// next is where rows may be whose keys do not wait.
func (f *first) next() int64 {
	switch {
	case f.found:
		return f.id
	case f.rows == f.most:
		return f.last + 1
	}
	return math.MaxInt64
}

// A window is the first rows behind the tails of some partitions.
type window struct {
	*ordered
	aside *aside
	rows  map[int]*look
}

// A look is what a window shows of one partition.
type look struct {
	rows    int
	waiting int // of them, because of an earlier one of their key
	chosen  int
	last    int64
	keys    map[string]bool // of rows that are due, and whether a later one is not
	depth   map[string]int  // rows of each
}

// scan takes a row. They come in the order of their ids.
func (w *window) scan(scan func(...any) error) error {
	var number int
	var c choice
	var held bool
	if err := scan(&number, &c.id, &c.key, &held); err != nil {
		return err
	}
	p, l := &w.all[number], w.rows[number]
	if l == nil {
		l = &look{keys: make(map[string]bool), depth: make(map[string]int)}
		w.rows[number] = l
	}
	l.rows, l.last = l.rows+1, c.id
	w.see(c.id)
	l.depth[c.key]++
	_, waits := p.waits[c.key]
	behind, due := l.keys[c.key]
	switch {
	case held && due: // the key does not wait for this row yet, but for one before it
		l.keys[c.key] = true
	case held && !waits:
		p.waits[c.key] = c.id
		waits = true
	}
	switch {
	case waits:
		l.waiting++
	case held || behind:
	case w.aside.names[c.key]:
		l.keys[c.key] = false
	default:
		l.keys[c.key] = false
		l.chosen++
		w.chosen = append(w.chosen, c)
	}
	return nil
}

// conclude moves the tails behind rows that all wait.
func (w *window) conclude() {
	for number, l := range w.rows {
		p := &w.all[number]
		w.met = true
		if l.rows < w.limit {
			if !p.shunt {
				p.deep = ""
			}
			continue
		}
		for key, n := range l.depth {
			if 2*n > l.rows && !p.shunt {
				p.deep = key
			}
		}
		before, crowded := p.tail, p.crowded
		if l.waiting == l.rows && !p.shunt && (!crowded || len(w.aside.names) == 0) { // else rows are left out that do not wait
			p.raise(min(l.last+1, w.safe()))
		}
		if l.chosen == 0 && p.tail <= l.last && w.limit == mostLooked {
			p.crowded = true
		}
		w.again = w.again || p.tail > before || l.chosen == 0 && (w.limit < mostLooked || p.crowded && !crowded)
	}
}
