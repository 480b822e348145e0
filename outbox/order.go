package outbox

import (
	"context"
	"slices"
	"time"
)

// publishInOrder has the Sink publish rows with ordering keys, one of each key at a time:
// the next one is not handed to it before the one before is acknowledged. What follows a
// row that was not, waits for it. So do rows for which there is no time left, since those
// of one key take as many rounds through the Sink as there are of them.
func (l *loop) publishInOrder(ctx context.Context, f *fetched) *verdicts {
	v := newVerdicts(f)
	end := time.Now().Add(l.batchTime())
	stopped := f.stopped // keys, and the first row of each that is not published
	for _, b := range slices.Backward(f.broken) {
		stop(stopped, b.row)
	}
	done := false
	for i, wave := range waves(f.rows) {
		if done = done || i > 0 && (ctx.Err() != nil || time.Now().After(end)); done {
			v.waiting += len(wave)
			continue
		}
		wave = v.behind(stopped, wave)
		before := len(v.published)
		for j, passed := range l.ask(ctx, v, wave) {
			if !passed {
				stop(stopped, wave[j])
			}
		}
		done = len(v.untouched) > 0 && len(v.published) == before
	}
	return v
}

// stop has those behind a row wait for it.
func stop(stopped map[string]int64, row Row) {
	key := hashOf(row.OrderingKey)
	if id, ok := stopped[key]; !ok || row.ID < id {
		stopped[key] = row.ID
	}
}

// waves returns first the first row of each key, then the second one of each, and so on.
func waves(rows []Row) (all [][]Row) {
	depth := make(map[string]int)
	for _, row := range rows {
		d := depth[string(row.OrderingKey)]
		depth[string(row.OrderingKey)]++
		if d == len(all) {
			all = append(all, nil)
		}
		all[d] = append(all[d], row)
	}
	return all
}

// behind leaves out the rows that wait for another one of their key.
func (v *verdicts) behind(stopped map[string]int64, wave []Row) []Row {
	rows := wave[:0]
	for _, row := range wave {
		if len(stopped) > 0 { // it rarely is not
			if id, ok := stopped[hashOf(row.OrderingKey)]; ok && id < row.ID {
				v.waiting++
				continue
			}
		}
		rows = append(rows, row)
	}
	return rows
}
