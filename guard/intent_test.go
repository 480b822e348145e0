package guard_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/oncemill/oncemill/guard"
)

// report is an intent that most tests vary.
func report() guard.Intent {
	return guard.Intent{
		SessionID: "sess-abc", TurnID: "3", StartTimeMS: 1716780000000, Task: "Summarize the quarterly report",
		CapabilityID: "general_content", Provider: "chatgpt", Constraints: json.RawMessage(`{"max_cost":1.0}`),
	}
}

func requestID(t *testing.T, i guard.Intent) string {
	t.Helper()
	id, err := i.RequestID()
	if err != nil {
		t.Fatalf("%+v: %v", i, err)
	}
	return id
}

func constrained(constraints string) guard.Intent {
	i := report()
	i.Constraints = json.RawMessage(constraints)
	return i
}

func tasked(task string) guard.Intent {
	i := report()
	i.Task = task
	return i
}

// The ids were made with Python.
func TestRequestIDsAreThoseOfPython(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		intent guard.Intent
		want   string
	}{
		{report(), "000299a9-3e53-cbfc-b9f6-dfdad2b2c42f"},
		{constrained(``), "00020cf3-3109-2598-cfbf-e9035c42f3ce"},
		{constrained(` { } `), "00020cf3-3109-2598-cfbf-e9035c42f3ce"},
		{constrained(`null`), "0002abac-d789-4e0a-c03e-c690cf2771a0"},
		{constrained(`{"max_cost":1}`), "00023d40-3dd9-7410-f149-714796de6648"},
		{constrained(`{"a":1e16,"b":1E15,"c":1e-4,"d":0.00001,"e":-0.0,"f":-0,"g":1e22,"h":5e-324,"i":1.7976931348623157e308,` +
			`"j":0.1,"k":100.0,"l":123456789012345678}`), "00027472-5f64-3d06-15c7-b46129bc4567"},
		{constrained(`{"n":123456789012345678901234567890,"m":-9007199254740993,"x":9007199254740993.0}`), "0002d972-dcc5-a4af-d86d-aa0fbabc8700"},
		{constrained(`{"z":[1,[],{},{"b":null,"a":[true,false]}],"\u00e9":"caf\u00e9 \ud83d\ude00 \u007f","\ue000":1,"\ud83d\ude00":2}`),
			"0002ee81-1184-8c44-2ff3-c0047be30523"},
		{constrained(`{"half":"\ud83d","other":"\ude00\ud83d","esc":"\"\\\/\b\f\n\r\t\u0001"}`), "0002653d-d4bc-6652-953b-dc4b4ec27bf4"},
		{tasked("  Summarize\tthe \u00a0 quarterly\u2028report\x1c"), "000299a9-3e53-cbfc-b9f6-dfdad2b2c42f"},
		{tasked("Zusammenfassung für Zoë — 報告書 \U0001F600 \"quoted\" \\ / <b>&"), "00026163-5a66-c5f0-2430-8c91886f5b13"},
		{tasked("a\u200bb"), "00021033-7691-f727-2af1-96f890ba8e06"},
		{guard.Intent{SessionID: "s\u2028", TurnID: "turn-ä", StartTimeMS: -1, Task: "x", CapabilityID: "c"}, "0002c774-9aa3-5a8c-81f2-e0d3c63a9f66"},
	} {
		if got := requestID(t, test.intent); got != test.want {
			t.Errorf("%+v with constraints %s: got %s, want %s", test.intent, test.intent.Constraints, got, test.want)
		}
	}
}

// pythonIDs reads a list of intents and prints the id of each on a line.
const pythonIDs = `
import hashlib, json, sys, uuid
for session, turn, start, task, capability, provider, constraints in json.load(sys.stdin):
    intent = {"schema_version": 2, "session_id": session, "turn_id": turn, "start_time_ms": start,
              "task": " ".join(task.split()), "capability_id": capability, "provider": provider,
              "constraints": json.loads(constraints)}
    text = json.dumps(intent, sort_keys=True, separators=(",", ":"))
    print(uuid.UUID(bytes=b"\x00\x02" + hashlib.sha256(text.encode()).digest()[:14]))
`

// Where there is a Python, it is asked about intents that nobody has thought of. The test
// above holds some of its answers for where there is none.
func TestRequestIDsAreThoseOfThePythonHere(t *testing.T) {
	t.Parallel()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Log("there is no python3 on this machine")
		return
	}
	made := maker{rand.New(rand.NewPCG(1, 2))}
	var intents []guard.Intent
	var asked [][]any
	for range 3000 {
		i := guard.Intent{
			SessionID: "s" + made.text(), TurnID: strconv.Itoa(made.IntN(99)), StartTimeMS: made.Int64() >> made.IntN(60),
			Task: "t" + made.text(), CapabilityID: "c" + made.text(), Provider: made.text(), Constraints: json.RawMessage(made.json(0)),
		}
		intents = append(intents, i)
		asked = append(asked, []any{i.SessionID, i.TurnID, i.StartTimeMS, i.Task, i.CapabilityID, i.Provider, string(i.Constraints)})
	}
	input, err := json.Marshal(asked)
	noError(t, err)
	cmd := exec.Command(python, "-c", pythonIDs)
	cmd.Stdin = bytes.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ids := strings.Fields(string(out))
	if len(ids) != len(intents) {
		t.Fatalf("%d ids of %d intents", len(ids), len(intents))
	}
	for n, i := range intents {
		if got := requestID(t, i); got != ids[n] {
			t.Fatalf("%+v with constraints %s: got %s, want %s", i, i.Constraints, got, ids[n])
		}
	}
}

// A maker makes up JSON.
type maker struct{ *rand.Rand }

// letters are such as are written or sorted in a way of their own.
var letters = []rune("aZ09 \t\x1c\x1f\u0085\u00a0\u1680\u180e\u2003\u2028\u200b\u3000\ufeff\"\\/<>&\x00\x7f\u0080é\ud7ff\ue000\uffff\U00010000\U0001F600\U0010FFFF")

func (m maker) text() string {
	b := make([]rune, m.IntN(6))
	for i := range b {
		b[i] = letters[m.IntN(len(letters))]
	}
	return string(b)
}

func (m maker) json(depth int) string {
	space := []string{"", " ", "\n\t"}[m.IntN(3)]
	switch n := m.IntN(8); {
	case n < 2 && depth < 4:
		var members []string
		for i := range m.IntN(5) { // the number keeps the names apart
			members = append(members, fmt.Sprintf("%s%s:%s", m.quoted(m.text()+strconv.Itoa(i)), space, m.json(depth+1)))
		}
		return "{" + space + strings.Join(members, ","+space) + "}"
	case n < 3 && depth < 4:
		var items []string
		for range m.IntN(5) {
			items = append(items, m.json(depth+1))
		}
		return "[" + strings.Join(items, space+",") + space + "]"
	case n < 5:
		return m.quoted(m.text())
	case n < 7:
		return m.number()
	}
	return []string{"true", "false", "null"}[m.IntN(3)]
}

// quoted writes a string with some of it escaped, and with halves of surrogate pairs.
func (m maker) quoted(s string) string {
	var b strings.Builder
	for _, c := range s {
		switch n := m.IntN(8); {
		case n == 0:
			fmt.Fprintf(&b, `\u%04X`, 0xd800+m.IntN(0x800))
		case c < ' ' || c == '"' || c == '\\' || n < 3 && c <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, c)
		default:
			b.WriteRune(c)
		}
	}
	return `"` + b.String() + `"`
}

func (m maker) number() string {
	f := math.Float64frombits(m.Uint64())
	switch m.IntN(6) {
	case 0:
		return strconv.Itoa(m.IntN(100))
	case 1:
		return fmt.Sprintf("-%d%d%d", 1+m.Uint64()>>1, m.Uint64(), m.Uint64())
	case 2:
		return strconv.FormatFloat(float64(m.IntN(1e6))/1000, 'f', 3, 64)
	case 3: // about where the exponent begins
		return strconv.FormatFloat(m.Float64()*math.Pow(10, float64(m.IntN(26)-6)), 'e', m.IntN(18), 64)
	case 4:
		return fmt.Sprintf("%d.0E%d", m.IntN(3), m.IntN(24))
	}
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return "-0.0"
	}
	return strconv.FormatFloat(f, 'e', 17, 64)
}

// The router chooses anew for every attempt: its decision is not in the intent, and
// neither is anything else that a retry changes.
func TestARetryWithANewDecisionIsTheSameRequest(t *testing.T) {
	t.Parallel()
	type decision struct {
		ID     string
		Intent guard.Intent
	}
	first := decision{"dec-1", report()}
	retry := decision{"dec-2", constrained("{ \"max_cost\" : 1.0 }\n")}
	retry.Intent.Task = " Summarize  the quarterly\nreport "
	if a, b := requestID(t, first.Intent), requestID(t, retry.Intent); a != b || first.ID == retry.ID {
		t.Errorf("decision %s is request %s, and %s is %s", first.ID, a, retry.ID, b)
	}
}

// What makes another intent makes another request.
func TestAnotherIntentIsAnotherRequest(t *testing.T) {
	t.Parallel()
	seen := make(map[string]int)
	for n, change := range []func(*guard.Intent){
		func(*guard.Intent) {},
		func(i *guard.Intent) { i.SessionID = "sess-abd" },
		func(i *guard.Intent) { i.TurnID = "4" },
		func(i *guard.Intent) { i.StartTimeMS++ },
		func(i *guard.Intent) { i.Task = "Summarize the quarterly reports" },
		func(i *guard.Intent) { i.CapabilityID = "other" },
		func(i *guard.Intent) { i.Provider = "" },
		func(i *guard.Intent) { i.Constraints = nil },
		func(i *guard.Intent) { i.Constraints = json.RawMessage(`{"max_cost":1}`) },
		func(i *guard.Intent) { i.TurnID, i.Task = `3","x":"`, "y" },
	} {
		i := report()
		change(&i)
		id := requestID(t, i)
		if other, ok := seen[id]; ok {
			t.Errorf("change %d is the same request as change %d", n, other)
		}
		seen[id] = n
	}
}

func TestAnIntentThatIsNoneIsRefused(t *testing.T) {
	t.Parallel()
	for says, i := range map[string]guard.Intent{
		"SessionID is empty":                {CapabilityID: "c"},
		"Task is empty":                     tasked(" \t\u2003\x1c"),
		"Task is not UTF-8":                 tasked("a\xff"),
		"Constraints: not JSON":             constrained(`{"max_cost":NaN}`),
		"Constraints: not JSON: line 2":     constrained("{\n\"max_cost\":-Infinity}"),
		"not finite":                        constrained(`{"max_cost":1e999}`),
		"line 1: the member \"a\" is there": constrained(`[{"a":1,"b":2,"\u0061":1}]`),
		"after top-level value":             constrained(`{} {}`),
		"Constraints: not UTF-8":            constrained("{\"a\":\"\xff\"}"),
		"unexpected end":                    constrained(" "),
		"more than 4300 digits":             constrained("[" + strings.Repeat("9", 4301) + "]"),
		"nested deeper":                     constrained(strings.Repeat("[", 600) + strings.Repeat("]", 600)),
	} {
		if id, err := i.RequestID(); err == nil || id != "" || !strings.Contains(err.Error(), says) {
			t.Errorf("got %q and error %v, want one that says %q", id, err, says)
		}
	}
}

// Names, task and constraints come from agents.
func FuzzRequestID(f *testing.F) {
	f.Add("3", "Summarize the quarterly report", `{"max_cost":1.0}`)
	f.Add("\xff", "\u2028", `[1e400,-0,"\ud83d\ude00\ud83d",{"a":{},"a":[]}]`)
	f.Fuzz(func(t *testing.T, turn, task, constraints string) {
		i := report()
		i.TurnID, i.Task, i.Constraints = turn, task, json.RawMessage(constraints)
		id, err := i.RequestID()
		if err != nil {
			return
		}
		if len(id) != 36 || !strings.HasPrefix(id, "0002") {
			t.Fatalf("got id %q", id)
		}
		if len(constraints) == 0 {
			return
		}
		var spaced bytes.Buffer
		noError(t, json.Indent(&spaced, i.Constraints, "\n", "\t"))
		again := i
		again.Task, again.Constraints = "\n"+strings.ReplaceAll(task, " ", "\u3000\x1f"), spaced.Bytes()
		if got := requestID(t, again); got != id {
			t.Fatalf("%q with %q: %s with other white space, %s without", task, constraints, got, id)
		}
		again.Constraints = json.RawMessage("[" + constraints + "]")
		if got, err := again.RequestID(); err == nil && got == id {
			t.Fatalf("%q and a list of it are one request", constraints)
		}
	})
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
