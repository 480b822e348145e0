package guard_test

import (
	"encoding/json"
	"fmt"

	"github.com/oncemill/oncemill/guard"
)

// A router gives every attempt a new decision. The request id comes from the intent, so
// that the second attempt finds the claim of the first.
func ExampleIntent() {
	for _, decision := range []string{"dec-1", "dec-2"} {
		id, err := guard.Intent{
			SessionID:    "sess-abc",
			TurnID:       "3",
			StartTimeMS:  1716780000000,
			Task:         "Summarize the quarterly report",
			CapabilityID: "general_content",
			Provider:     "chatgpt",
			Constraints:  json.RawMessage(`{"max_cost": 1.0}`),
		}.RequestID()
		fmt.Println(decision, id, err)
	}
	// Output:
	// dec-1 000299a9-3e53-cbfc-b9f6-dfdad2b2c42f <nil>
	// dec-2 000299a9-3e53-cbfc-b9f6-dfdad2b2c42f <nil>
}
