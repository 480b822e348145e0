package main

import (
	"slices"
	"time"
)

// A column is something that is watched.
type column struct {
	name string

	// slack is by how much it may grow beside a fifth: see judge. 0: it is only shown.
	slack float64

	// fills is for how long it grows in any case: until what is kept for a time is purged.
	// At the least it is warmUp.
	fills time.Duration
}

// aSecond is the slack that is as much as the rate.
const aSecond = -1

// warmUp is when pools and caches are full, and autovacuum has come once.
const warmUp = time.Minute

// purgeMargin is for how long after Retention claims are kept, for clocks that differ.
const purgeMargin = 5 * time.Minute

// columns are all that is watched, in the order in which a sample has them. Sizes are in
// megabytes of 2^20 bytes.
var columns = slices.Concat([]column{
	{name: "seconds"},
	{name: "sent"},                        // messages that the broker has stored
	{name: "effects"},                     // of them
	{name: "arrivals"},                    // downstream
	{name: "rate"},                        // effects a second, since the sample before
	{name: "drift", slack: aSecond},       // messages sent that have no effect yet
	{name: "undelivered", slack: aSecond}, // effects whose child has not arrived yet
	{name: "outbox_rows"},
	{name: "p50_ms"}, {name: "p99_ms"}, // from the producer to the arrival of the child
	{name: "claims_mb", slack: 16, fills: retention + purgeMargin}, // with indexes
	{name: "outbox_mb", slack: 16},
	{name: "events_mb", slack: 16, fills: retention},
	{name: "published_mb", slack: 16, fills: retention},
	{name: "claims_dead"}, {name: "outbox_dead"}, {name: "events_dead"}, {name: "published_dead"}, // rows
	{name: "connections", slack: 5},
	{name: "postgres_mb", slack: 32}, // of its processes, without shared memory
}, ofRoles())

// ofRoles are what is watched of each role's processes, all together.
func ofRoles() (all []column) {
	for _, p := range places {
		memory, goroutines := column{name: p.role + "_rss_mb"}, column{name: p.role + "_goroutines"}
		heap := column{name: p.role + "_heap_mb"} // what was alive after garbage collection
		if p.ours {
			memory.slack, goroutines.slack, heap.slack = 16, 50, 8
		}
		all = append(all, memory, heap, goroutines)
	}
	return all
}

func indexOf(name string) int {
	return slices.IndexFunc(columns, func(c column) bool { return c.name == name })
}
