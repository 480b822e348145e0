package outbox

import "time"

const (
	// firstBatch is how many rows the first batch has at most, and fewest how few
	// are taken where the broker is slow.
	firstBatch = 500
	fewest     = 20

	// batchTime is about how long the Sink should take for a batch: the rows of a
	// slow one should not be locked for long, nor run into PublishTimeout.
	batchTime = 250 * time.Millisecond
)

// A pace says how many rows the next batch takes. It doubles while full batches
// go out fast, and halves where they do not.
type pace struct {
	size  int  // rows
	width int  // bytes of a row, about
	wide  bool // rows are so large that their sizes have to be added up
	last  int  // rows of the last batch
	full  int  // batches in a row that were full and went out whole
}

// rows returns how many rows to ask for where they should have no more than a
// number of bytes together, with room for some that are larger than usual.
func (p *pace) rows(bytes int) int {
	return max(1, min(p.size, bytes/(4*max(p.width, 1))))
}

// learn draws conclusions from the sizes of a batch's rows.
func (p *pace) learn(f *fetched) {
	p.last = f.read()
	if n := p.last; n > 0 {
		p.width = f.bytes / n
		p.wide = p.width > batchBytes/2/4/fewest
	}
}

// adapt draws conclusions from how a batch was published.
func (p *pace) adapt(b *batch, took, target time.Duration, most int) {
	untouched := b.verdicts.untouched > 0
	if !b.more || untouched {
		p.full = 0
	} else {
		p.full++
	}
	switch {
	case untouched, took > target:
		p.size = max(p.size/2, min(fewest, most))
	case b.more && took < target/2:
		p.size = min(2*p.size, most)
	}
}
