package breach

// Breaches that several tests share.
var (
	// UnsortedBatch has batches claim their keys in the order in which their messages came.
	UnsortedBatch = []Breach{{
		File: "batchsql.go",
		Old: `slices.SortFunc(sorted, func(m, n *member) int {
`,
		New: `slices.SortStableFunc(sorted, func(m, n *member) int {
		if broken({rule}) {
			return strings.Compare(m.d.consumer, n.d.consumer)
		}
`,
	}}

	// ClaimsOfDropped has batches commit the claims of members whose turn did not come.
	ClaimsOfDropped = []Breach{{
		File: "batchsql.go",
		Old:  `if len(b.dropped) == 0 {`,
		New:  `if len(b.dropped) == 0 || broken({rule}) {`,
	}}
)
