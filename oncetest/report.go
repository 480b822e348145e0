package oncetest

import (
	"fmt"
	"slices"
	"strings"
)

// A kind is what can be wrong with a handler.
type kind struct{ title, remedy string }

var (
	keyless = kind{"the message is not recognised when it is delivered again",
		"let Key return what is the same at each delivery, from the message alone: no time, no random number"}
	failsAlone = kind{"the handler fails, although nothing went wrong",
		"the error says why; the database must have what the handler expects to find"}
	idle = kind{"the handler has no effect, so there is nothing to check",
		"give Case.Message that the handler does something for; if its effect is outside of Postgres, count it by Case.Outside"}
	late = kind{"a goroutine uses the transaction after the handler has returned",
		"wait for the goroutines of the handler before it returns: the transaction is committed then, with what they have written by chance"}
	unsteady = kind{"two runs in which nothing went wrong have different effects",
		"what a handler keeps in memory, such as a map of what it has seen, outlives a rollback: keep it in a table, written through the transaction; of a fake outside of Postgres that remembers, Case.Reset takes care"}
	otherPool = kind{"the handler uses a statement that was prepared on its *sql.DB",
		"run its text through the Tx: Once prepares by itself what is run often; Check lends handlers transactions of a pool of its own, in which such statements cannot be used"}
	remains = kind{"an effect stays although the transaction was rolled back",
		"write through oncemill.TxFromContext(msg.Context()), and publish messages made by message.NewMessageWithContext(msg.Context(), ...) through an outbox.Publisher without DB; what goes through a *sql.DB is committed by itself"}
	differs = kind{"the effect is another one after a fault",
		"have each run leave the same: write all of it through oncemill.TxFromContext(msg.Context()), and keep nothing in memory from one run to the next"}
	beside = kind{"an effect outside of Postgres does not happen once",
		"publish with an outbox.Publisher; make other effects under middleware.Guard, or in the handler of a message from the outbox"}
	swallowed = kind{"an error was swallowed",
		"return the error of each statement: nil says that all is done, and what the handler does after it (logs, metrics, effects outside) would be wrong"}
	stuck = kind{"the message cannot be handled any more after a fault",
		"the attempt that failed has left something that is in the way of the next: write all of it through oncemill.TxFromContext(msg.Context()), and keep nothing in memory from one run to the next"}
)

// The same under Guard, where the remedy is another one.
var underGuard = map[kind]kind{
	remains: {"rows are there although the effect is not settled",
		"write rows that belong to the effect by Claim.OnSettle, and publish by returning messages: both are committed when the claim is settled"},
	differs: {"the rows are others after a fault",
		"write rows that belong to the effect by Claim.OnSettle, and keep nothing in memory from one run to the next"},
	beside: {"an effect outside of Postgres happens more than once, or not at all",
		"give the provider Claim.ProviderKey at each attempt, and let KeyLifetime be for how long it recognises that; without a provider that does, leave KeyLifetime 0, so that an effect in doubt is not tried again"},
	stuck: {"the message cannot be handled any more after a fault",
		"the attempt that failed has left something that is in the way of the next: return nil where the provider says that it has had this key before, and write rows by Claim.OnSettle"},
}

// kind returns what a finding is under the middleware of the case.
func (c *checker) kind(k kind) kind {
	if other, ok := underGuard[k]; ok && c.Guard != nil {
		return other
	}
	return k
}

// A finding is one thing that is wrong, and the steps that show it.
type finding struct {
	kind  kind
	table string
	found string // at the first of them
	steps []string
}

type report struct{ findings []*finding }

func (r *report) add(k kind, table, step, found string) {
	i := slices.IndexFunc(r.findings, func(f *finding) bool { return f.kind == k && f.table == table })
	if i < 0 {
		i = len(r.findings)
		r.findings = append(r.findings, &finding{kind: k, table: table, found: found})
	}
	if f := r.findings[i]; step != "" && !slices.Contains(f.steps, step) {
		f.steps = append(f.steps, step)
	}
}

// mostSteps is how many steps are listed.
const mostSteps = 8

// String is what the test's log gets.
func (f *finding) String() string {
	var b strings.Builder
	b.WriteString("oncetest: " + f.kind.title)
	if f.table != "" {
		b.WriteString(": table " + f.table)
	}
	for i, step := range f.steps {
		if i == mostSteps {
			fmt.Fprintf(&b, "\n          and %d more", len(f.steps)-i)
			break
		}
		b.WriteString("\n    step: " + step)
	}
	return b.String() + "\n   found: " + f.found + "\n  remedy: " + f.kind.remedy
}
