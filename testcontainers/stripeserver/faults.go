package stripeserver

import (
	"encoding/binary"
	"hash/fnv"
	"net/url"
	"slices"
)

// A Fault is what goes wrong with one request.
type Fault string

// Faults. What is executed and what is stored with the key is what decides how the
// next request under the same key ends.
const (
	None Fault = ""

	// Before the request reaches what makes payments: nothing is executed, nothing is
	// stored.
	CutBefore   Fault = "cut before"   // the connection breaks
	HangBefore  Fault = "hang before"  // no answer, until the client gives up
	RateLimit   Fault = "rate limit"   // 429
	LockTimeout Fault = "lock timeout" // 429, another request holds an object
	Forbidden   Fault = "forbidden"    // 403, the API key lacks a permission
	Unavailable Fault = "unavailable"  // 503, from what stands before Stripe: not JSON
	Conflict    Fault = "conflict"     // 409, as if the key were in use

	// While it is executed: the 500 is stored, and comes again for the same key.
	ErrorBefore Fault = "error before" // 500, nothing was made
	ErrorAfter  Fault = "error after"  // 500, the payment was made
	ErrorHalf   Fault = "error half"   // 500, a PaymentIntent is there, unconfirmed
	SlowBefore  Fault = "slow before"  // Options.Delay passes; then it is executed

	// After it was executed, and its answer stored.
	CutAfter  Fault = "cut after"   // the connection breaks: a lost reply
	HangAfter Fault = "hang after"  // no answer, until the client gives up
	SlowAfter Fault = "slow after"  // Options.Delay passes; then it answers
	Gateway   Fault = "bad gateway" // 502, from what stands before Stripe: not JSON
	Garbled   Fault = "garbled"     // 200, and half of a JSON object
)

var before = []Fault{CutBefore, HangBefore, RateLimit, LockTimeout, Forbidden, Unavailable, Conflict}

// A Call is a request, as far as it matters to what should go wrong.
type Call struct {
	Method string
	Path   string     // such as /v1/payment_intents
	Key    string     // its Idempotency-Key
	Params url.Values // of the form or the query
	Nth    int        // the how manieth request with this method, path and key, from 1
}

// Random chooses faults at certain rates. What it chooses depends on the seed, the
// request's key and how often it came, and not on the order of requests, so that a
// run can be repeated.
type Random struct {
	Seed  uint64
	Rates map[Fault]float64 // their sum must not exceed 1; the rest goes well
}

// Choose is for Options.Faults. Requests without a key go well.
func (r Random) Choose(c Call) Fault {
	if c.Key == "" {
		return None
	}
	h := fnv.New64a()
	var numbers [16]byte
	binary.BigEndian.PutUint64(numbers[:8], r.Seed)
	binary.BigEndian.PutUint64(numbers[8:], uint64(c.Nth))
	h.Write(numbers[:])
	h.Write([]byte(c.Path + " " + c.Key))
	at := float64(mix(h.Sum64())>>11) / (1 << 53)
	faults := make([]Fault, 0, len(r.Rates))
	for f := range r.Rates {
		faults = append(faults, f)
	}
	slices.Sort(faults)
	for _, f := range faults {
		if at < r.Rates[f] {
			return f
		}
		at -= r.Rates[f]
	}
	return None
}

// mix spreads what FNV leaves in the low bits.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
