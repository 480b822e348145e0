package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/oncemill/oncemill/guard"
	"github.com/oncemill/oncemill/internal/oneline"
)

var guardTenantsListCommand = command{
	name:    "guard tenants list",
	summary: "show tenants, the ids of their keys and when those expire",
	help: `
Show the tenants of a file, the ids of their API keys, and when those expire. The keys
themselves are not in the file.

  oncemill guard tenants list --tenants tenants.json`,
	prepare: func(f *flags) action {
		file := f.tenants()
		asJSON := f.toggle("json", "write a JSON object for each key, a line each, instead of a table")
		return func(_ context.Context, stdout, _ io.Writer) error { return listTenants(*file, *asJSON, stdout) }
	},
}

// A listedKey is what the list says of an API key, or of a tenant that has none.
type listedKey struct {
	Tenant   string     `json:"tenant"`
	Rate     float64    `json:"rate,omitempty"` // 0: the guard's
	Burst    int        `json:"burst,omitempty"`
	State    string     `json:"state"` // valid, expired or no key
	KeyID    string     `json:"key_id,omitempty"`
	Created  *time.Time `json:"created,omitempty"`
	Expires  *time.Time `json:"expires,omitempty"` // nil: never
	Operator bool       `json:"operator,omitempty"`
	Note     string     `json:"note,omitempty"`
}

func listTenants(file string, asJSON bool, stdout io.Writer) error {
	if err := needTenants(file); err != nil {
		return err
	}
	tenants, err := guard.ReadTenants(file)
	if err != nil {
		return err
	}
	keys := listedKeys(tenants, time.Now())
	if asJSON {
		return printJSON(stdout, keys)
	}
	if len(keys) == 0 {
		_, err := fmt.Fprintln(stdout, "there are no tenants")
		return err
	}
	return printKeys(keys, stdout)
}

func listedKeys(tenants []guard.TenantEntry, now time.Time) (listed []listedKey) {
	for _, t := range tenants {
		one := listedKey{Tenant: t.Name, Rate: t.Rate, Burst: t.Burst, State: "no key"}
		if len(t.Keys) == 0 {
			listed = append(listed, one)
		}
		for _, k := range t.Keys {
			one.State, one.KeyID, one.Created, one.Operator, one.Note = "valid", k.ID, &k.Created, k.Operator, k.Note
			if one.Expires = nil; !k.Expires.IsZero() {
				one.Expires = &k.Expires
			}
			if k.Expired(now) {
				one.State = "expired"
			}
			listed = append(listed, one)
		}
	}
	return listed
}

func printKeys(keys []listedKey, stdout io.Writer) error {
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TENANT\tKEY\tSTATE\tCREATED\tEXPIRES\tOPERATOR\tRATE\tBURST\tNOTE")
	for _, k := range keys {
		operator := "no"
		if k.Operator {
			operator = "yes"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", k.Tenant, shown(k.KeyID), k.State, shownTime(k.Created), shownTime(k.Expires), operator,
			shownNumber(k.Rate), shownNumber(float64(k.Burst)), shown(oneline.Of(k.Note, mostReason)))
	}
	return table.Flush()
}

func shownTime(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

func shownNumber(n float64) string {
	if n == 0 {
		return "-"
	}
	return strconv.FormatFloat(n, 'f', -1, 64)
}
