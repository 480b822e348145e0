package oncemill_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/oncemill/oncemill"
)

// What handlers run often is prepared as it is.
func TestAPreparedTextIsTheHandlers(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, f *fixture, in *oncemill.Inbox) {
		c := in.Consumer("test")
		for i := range 6 {
			must(t, c.Once(within(t), fmt.Sprint(i), func(ctx context.Context, tx oncemill.Tx) error {
				_, err := tx.ExecContext(ctx, `INSERT INTO effects SELECT '{schema}' WHERE $1::int = 1`, 1)
				return err
			}))
		}
		f.wantEffects("{schema}", 6)
	})
}
