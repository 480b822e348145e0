// Package hostile is messages, rows and requests that nobody should send, and what becomes
// of each of them: corpus.go has the tables. The tests of testcontainers/hostile and
// testcontainers/kafka send them.
package hostile

import (
	"fmt"
	"strings"
	"testing"
)

// A Ledger is where what was sent is accounted for: in exactly one of them.
type Ledger string

const (
	Refused   Ledger = "refused"   // whoever sends it gets an error, and nothing is stored
	Handled   Ledger = "handled"   // its effect is committed, once
	Duplicate Ledger = "duplicate" // its effect, or its dead letter, is that of an earlier one
	Dead      Ledger = "dead"      // there is a dead letter of it
	Sent      Ledger = "sent"      // a relay has published it, once
	Parked    Ledger = "parked"    // its row is in the outbox, until an operator comes
	Deferred  Ledger = "deferred"  // its row is tried again later
	Waiting   Ledger = "waiting"   // its row has not been tried: its time has not come
)

// A Fate is what becomes of something. The zero value is that it cannot be sent that way.
type Fate struct {
	Ledger Ledger
	Reason string // words of the reason that is given
}

var (
	handled   = Fate{Ledger: Handled}
	sent      = Fate{Ledger: Sent}
	duplicate = Fate{Ledger: Duplicate}
	waiting   = Fate{Ledger: Waiting}
)

func refused(reason string) Fate  { return Fate{Refused, reason} }
func dead(reason string) Fate     { return Fate{Dead, reason} }
func parked(reason string) Fate   { return Fate{Parked, reason} }
func deferred(reason string) Fate { return Fate{Deferred, reason} }

func (f Fate) String() string {
	return strings.TrimSuffix(fmt.Sprintf("%s: %.300s", f.Ledger, f.Reason), ": ")
}

// Books are the ledgers in which each of some was found, by name, with the reasons.
type Books map[string][]Fate

// Enter notes that one was found in a ledger.
func (b Books) Enter(name string, ledger Ledger, reason string) {
	b[name] = append(b[name], Fate{ledger, reason})
}

// Balance wants one to be in exactly one ledger, the one that is expected, with the reason.
func (b Books) Balance(t *testing.T, name string, want Fate) {
	t.Helper()
	found := b[name]
	if len(found) != 1 || found[0].Ledger != want.Ledger || !strings.Contains(found[0].Reason, want.Reason) {
		t.Errorf("%s: want it %v; it is %v", name, want, found)
	}
}
