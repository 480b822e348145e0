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
	v := &verdicts{failed: f.broken}
	end := time.Now().Add(l.batchTime())
	stopped := make(map[string]int64) // keys, and the first row that is not published
	for _, b := range slices.Backward(f.broken) {
		stopped[string(b.row.OrderingKey)] = b.row.ID
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
				stopped[string(wave[j].OrderingKey)] = wave[j].ID
			}
		}
		done = v.untouched > 0 && len(v.published) == before
	}
	return v
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
		if id, ok := stopped[string(row.OrderingKey)]; ok && id < row.ID {
			v.waiting++
			continue
		}
		rows = append(rows, row)
	}
	return rows
}
