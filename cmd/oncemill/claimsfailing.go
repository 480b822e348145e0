package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/storedkey"
)

// A failingMessage is a row of the table handler_errors.
type failingMessage struct {
	Consumer  string    `json:"consumer"`
	Key       string    `json:"key"`
	Errors    int       `json:"errors"`
	LastError string    `json:"last_error"`
	LastAt    time.Time `json:"last_at"`
}

// listFailing lists the messages whose handlers have failed.
func (o claimsListOptions) listFailing(ctx context.Context, inbox *oncemill.Inbox, stdout, stderr io.Writer) error {
	all, err := newClaimsReader(inbox).failing(ctx, *o.consumer, *o.since, *o.limit)
	switch {
	case err != nil:
		return fmt.Errorf("list what fails: %w", err)
	case *o.json:
		err = printJSON(stdout, all)
	case len(all) == 0:
		return printNothing(ctx, inbox, stdout, *o.consumer, "no message", "fails")
	default:
		err = printFailing(stdout, all)
	}
	if err == nil && len(all) == *o.limit {
		_, err = fmt.Fprintf(stderr, "these are the first %d: there may be more (--limit)\n", *o.limit)
	}
	return err
}

func printFailing(stdout io.Writer, all []failingMessage) error {
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "CONSUMER\tKEY\tERRORS\tLAST\tLAST ERROR")
	for _, f := range all {
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%s\n", shown(f.Consumer), shown(f.Key), f.Errors, timeOrDash(f.LastAt), shownReason(f.LastError))
	}
	return table.Flush()
}

// failing reads the messages that have failed and were not handled since, the last ones
// first. The errors of one that was handled stay until they are purged.
func (r claimsReader) failing(ctx context.Context, consumer string, since time.Duration, most int) (all []failingMessage, err error) {
	rows, err := r.db.QueryContext(ctx, r.in(`
SELECT consumer, key, errors, last_error, last_at FROM {schema}.handler_errors AS h
WHERE $1 IN ('', consumer) AND last_at >= COALESCE(now() - $2::bigint * interval '1 microsecond', '-infinity')
	AND NOT EXISTS (SELECT FROM {schema}.claims AS c WHERE c.consumer = h.consumer AND c.key = h.key AND c.settled_at IS NOT NULL)
ORDER BY last_at DESC, consumer, key LIMIT $3`), consumer, sinceArg(since), most)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var f failingMessage
		var stored string
		if err := rows.Scan(&f.Consumer, &stored, &f.Errors, &f.LastError, &f.LastAt); err != nil {
			return nil, err
		}
		f.Key, f.LastAt = storedkey.Shown(stored), f.LastAt.UTC()
		all = append(all, f)
	}
	return all, rows.Err()
}
