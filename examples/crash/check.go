package main

import (
	"fmt"
	"maps"
	"slices"

	"github.com/oncemill/oncemill"
)

// The checker believes none of the processes. It compares what the broker acknowledged to
// the producers with what is in Postgres, in the topics and in the provider's ledger.

// A class of anomalies.
type class string

const (
	lost        class = "lost"
	twice       class = "twice"
	unexplained class = "unexplained"
)

// An anomaly is something that must not be.
type anomaly struct {
	class class
	kind  string // what of: "effects", "arrivals" ...
	what  string
	keys  []string // whose histories tell more

	history string
}

// A verdict is what the checker finds.
type verdict struct {
	messages, effects int // of Once: sent, and their effects

	arrivals int // of children, downstream
	notes    int // messages in an order
	guarded  int // effects that were wanted
	happened int // one entry in the ledger, and a settled claim
	failed   int // none, and a claim that has failed
	inDoubt  int // at most one, and a claim that is listed as in doubt

	found []anomaly
}

func (r *run) find(kind, what string, keys ...string) {
	r.found = append(r.found, anomaly{class: unexplained, kind: kind, what: what, keys: keys})
}

func (v *verdict) find(class class, kind string, keys []string, format string, args ...any) {
	v.found = append(v.found, anomaly{class: class, kind: kind, what: fmt.Sprintf(format, args...), keys: keys})
}

// judge compares everything.
func (f *facts) judge() (v verdict) {
	f.judgeOnce(&v)
	f.judgeChildren(&v)
	f.judgeOrder(&v)
	f.judgeGuarded(&v)
	f.judgeRest(&v)
	return v
}

// judgeOnce wants each message to have had its effect once, and each effect a claim.
func (f *facts) judgeOnce(v *verdict) {
	dead := make(map[string]bool)
	for _, d := range f.dead {
		dead[d.uuid] = true
	}
	for _, consumer := range []string{single, batch} {
		known := make(map[string]bool)
		for _, uuid := range f.sent[consumer] {
			known[uuid] = true
			v.messages++
			k := claimKey{consumer, uuid}
			_, claimed := f.claims[k]
			switch n := len(f.effects[k]); {
			case n == 0 && dead[uuid]:
				v.find(lost, "effects", []string{uuid}, "%s has no effect, and is a dead letter", uuid)
			case n == 0 && claimed:
				v.find(lost, "effects", []string{uuid}, "%s has a claim, and no effect", uuid)
			case n == 0:
				v.find(lost, "effects", []string{uuid}, "%s was published, and has no effect", uuid)
			case n > 1:
				v.find(twice, "effects", []string{uuid}, "%s has %d effects", uuid, n)
			case !claimed:
				v.find(unexplained, "claims", []string{uuid}, "%s has an effect, and no claim", uuid)
			}
			v.effects += len(f.effects[k])
		}
		f.judgeStrays(v, consumer, known)
	}
	for _, uuid := range f.old { // its claim may have been forgotten
		if n := len(f.effects[claimKey{batch, uuid}]); n != 1 {
			v.find(twice, "effects", []string{uuid}, "%s, from long before, has %d effects", uuid, n)
		}
	}
}

// judgeStrays wants no effects but of what was sent.
func (f *facts) judgeStrays(v *verdict, consumer string, known map[string]bool) {
	for k := range f.effects {
		if k.consumer == consumer && !known[k.key] && !isOld(k.key) {
			v.find(unexplained, "effects", []string{k.key}, "%s has an effect, and was not sent", k.key)
		}
	}
}

// judgeChildren wants each child of an effect, of a settlement and of a clerk to have
// arrived once, and no others.
func (f *facts) judgeChildren(v *verdict) {
	expected := make(map[string]map[string]string) // by topic and UUID: whose child it is
	for _, topic := range downstream {
		expected[topic] = make(map[string]string)
	}
	for k, children := range f.effects {
		for _, child := range children {
			if child != "" {
				expected[childrenA][child], expected[childrenB][child] = k.key, k.key
			}
		}
	}
	for k, all := range f.settlements {
		for _, s := range all {
			expected[receipts][s.child] = k.key
		}
	}
	for _, n := range f.notes {
		expected[ordered][n.uuid] = n.key
	}
	v.notes = len(f.notes)
	for _, topic := range downstream {
		f.judgeArrivals(v, topic, expected[topic])
	}
}

func (f *facts) judgeArrivals(v *verdict, topic string, expected map[string]string) {
	for child, parent := range expected {
		switch n := f.arrivals[topic][child]; {
		case n == 0:
			v.find(lost, "arrivals", []string{child, parent}, "%s, a child of %s, has not arrived from %s", child, parent, topic)
		case n > 1:
			v.find(twice, "arrivals", []string{child, parent}, "%s, a child of %s, has arrived from %s %d times", child, parent, topic, n)
		}
		v.arrivals += f.arrivals[topic][child]
	}
	for child := range f.arrivals[topic] {
		if _, ok := expected[child]; !ok {
			v.find(unexplained, "arrivals", []string{child}, "%s has arrived from %s, and is nobody's child", child, topic)
		}
	}
}

// judgeOrder wants the clerks' messages to be in their topic in the order of their numbers,
// those of each key: what comes again comes after it has been there.
func (f *facts) judgeOrder(v *verdict) {
	of := make(map[string]note)
	for _, n := range f.notes {
		of[n.uuid] = n
	}
	latest, seen := make(map[string]note), make(map[string]bool)
	for _, d := range f.order {
		n, ok := of[d.uuid]
		if !ok {
			v.find(unexplained, "order", []string{d.uuid}, "%s (%s) is in the topic %s, and was not committed", d.uuid, d.payload, ordered)
			continue
		}
		if seen[d.uuid] {
			continue
		}
		seen[d.uuid] = true
		if over := latest[n.key]; over.number > n.number {
			v.find(unexplained, "order", []string{n.uuid, over.uuid}, "%s %d has been overtaken by %d", n.key, n.number, over.number)
			continue
		}
		latest[n.key] = n
	}
}

// judgeGuarded wants each effect outside of Postgres to have happened once, or never will, or
// to be in doubt and listed.
func (f *facts) judgeGuarded(v *verdict) {
	wanted := make(map[claimKey]bool)
	for _, consumer := range []string{charges, mails} {
		for _, uuid := range f.sent[consumer] {
			wanted[claimKey{consumer, uuid}] = true
		}
	}
	for _, id := range f.calls {
		wanted[claimKey{guardConsumer, id}] = true
	}
	for k := range wanted {
		v.guarded++
		f.judgeEffect(v, k)
	}
	for k := range f.ledger {
		if !wanted[k] {
			v.find(unexplained, "guarded", []string{k.key}, "%s is in the provider's ledger, and was not wanted", k.key)
		}
	}
}

func (f *facts) judgeEffect(v *verdict, k claimKey) {
	c, claimed := f.claims[k]
	made := 0
	for _, e := range f.ledger[k] {
		if e.Receipt != "" {
			made++
		}
	}
	wrong := func(format string, args ...any) {
		v.find(unexplained, "guarded", []string{k.key}, k.consumer+" "+k.key+" "+format, args...)
	}
	switch doubt, listed := f.doubts[k]; {
	case made > 1:
		v.find(twice, "guarded", []string{k.key}, "%s %s is in the provider's ledger %d times", k.consumer, k.key, made)
	case len(f.settlements[k]) > 1:
		v.find(twice, "settlements", []string{k.key}, "%s %s has been settled %d times", k.consumer, k.key, len(f.settlements[k]))
	case !claimed && made == 0:
		v.find(lost, "guarded", []string{k.key}, "%s %s was never claimed", k.consumer, k.key)
	case !claimed:
		wrong("has no claim, and is in the provider's ledger")
	case c.outcome == oncemill.Settled && made == 0:
		wrong("is settled, and not in the provider's ledger")
	case c.outcome == oncemill.Settled && k.consumer != guardConsumer && len(f.settlements[k]) == 0:
		wrong("is settled, and what belongs to that was not written")
	case c.outcome == oncemill.Settled:
		v.happened++
	case len(f.settlements[k]) > 0:
		wrong("is not settled, and what belongs to that was written")
	case c.outcome == oncemill.Failed && made > 0:
		wrong("has failed, and is in the provider's ledger")
	case c.outcome == oncemill.Failed:
		v.failed++
	case c.outcome != "":
		wrong("has the outcome %s", c.outcome)
	case !listed:
		wrong("is not settled, and not listed as in doubt")
	case k.consumer == mails && doubt.Message == nil:
		wrong("is in doubt, and its message is not parked")
	default:
		v.inDoubt++
	}
}

// judgeRest wants nothing to be left over.
func (f *facts) judgeRest(v *verdict) {
	for _, uuid := range f.rows {
		v.find(unexplained, "outbox", []string{uuid}, "%s is left in the outbox", uuid)
	}
	once := make(map[string]bool)
	for _, uuid := range append(f.sent[single], f.sent[batch]...) {
		once[uuid] = true
	}
	for _, d := range f.dead {
		if uuid := d.uuid; !isOld(uuid) && !once[uuid] {
			v.find(unexplained, "dead letters", []string{uuid}, "%s is a dead letter", uuid)
		}
	}
	v.found = append(v.found, f.standing...)
	if f.deadlocks > 0 {
		v.found = append(v.found, deadlocked(f.deadlocks))
	}
}

// count returns how many of a class there are.
func (v *verdict) count(class class) (n int) {
	for _, a := range v.found {
		if a.class == class {
			n++
		}
	}
	return n
}

// byKind returns the anomalies of each class and kind, in an order that is always the same.
func (v *verdict) byKind() (all [][]anomaly) {
	groups := make(map[string][]anomaly)
	for _, a := range v.found {
		name := fmt.Sprintf("%s %s", a.class, a.kind)
		groups[name] = append(groups[name], a)
	}
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		all = append(all, groups[name])
	}
	return all
}
