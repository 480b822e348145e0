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

// batchTime is how long the Sink should take for a batch.
func (r *Relay) batchTime() time.Duration { return min(batchTime, r.publishTimeout()/8) }

// A pace says how many rows the next batch takes. It doubles while full batches
// go out fast, and halves where they do not.
type pace struct {
	size   int // rows
	full   int // batches in a row that were full and went out whole
	last   int // rows of the last batch
	widest int // bytes of a row, of those that came lately
}

// wideRow is the size of a row from which on sizes have to be added up.
const wideRow = 8 << 10

func (p *pace) wide() bool { return p.widest > wideRow }

// rows returns how many rows to ask for where they should have no more than a
// number of bytes together, each of the same size, with some room to spare.
func (p *pace) rows(bytes int) int {
	return min(p.size, bytes/(4*max(p.widest, 1)))
}

// learn draws conclusions from the sizes of a batch's rows.
func (p *pace) learn(f *fetched) {
	if p.last = f.read(); p.last > 0 {
		p.widest = max(f.widest, p.widest/2)
	}
}

// adapt draws conclusions from how a batch was published.
func (p *pace) adapt(b *batch, took, target time.Duration, most int) {
	if !b.more || len(b.verdicts.untouched) > 0 {
		p.full = 0
	} else {
		p.full++
	}
	switch {
	case took > target:
		p.size = max(p.size/2, min(fewest, most))
	case b.more && took < target/2:
		p.size = min(2*p.size, most)
	}
}
