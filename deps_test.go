package oncemill_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// What these packages import, their users import. Each list is the whole of it:
// a module path stands for all packages of the module.
var allowed = map[string][]string{
	".": {
		"github.com/oncemill/oncemill",
	},
	"./outbox": {
		"github.com/oncemill/oncemill", "github.com/lib/pq", "github.com/ThreeDotsLabs/watermill",
		// What Watermill's message package imports.
		"github.com/google/uuid", "github.com/lithammer/shortuuid", "github.com/oklog/ulid", "github.com/pkg/errors",
	},
	"./outbox/watermillsql": {
		"github.com/oncemill/oncemill", "github.com/lib/pq", "github.com/ThreeDotsLabs/watermill", "github.com/ThreeDotsLabs/watermill-sql",
		"github.com/google/uuid", "github.com/lithammer/shortuuid", "github.com/oklog/ulid", "github.com/pkg/errors",
	},
	"./middleware": {
		"github.com/oncemill/oncemill", "github.com/lib/pq", "github.com/ThreeDotsLabs/watermill",
		"github.com/google/uuid", "github.com/lithammer/shortuuid", "github.com/oklog/ulid", "github.com/pkg/errors",
		// What Watermill's router middlewares import.
		"github.com/cenkalti/backoff", "github.com/sony/gobreaker",
	},
	// For tests: see never.
	"./oncetest": {
		"github.com/oncemill/oncemill", "github.com/lib/pq", "github.com/ThreeDotsLabs/watermill",
		"github.com/google/uuid", "github.com/lithammer/shortuuid", "github.com/oklog/ulid", "github.com/pkg/errors",
		"github.com/cenkalti/backoff", "github.com/sony/gobreaker",
	},
	"./guard": {
		"github.com/oncemill/oncemill", "golang.org/x/time",
	},
	"./guard/client": {
		"github.com/oncemill/oncemill/guard/client",
	},
}

// never is what even an allowed module must not bring. Package oncetest may import package
// testing, and so nothing that is built into a service may import oncetest.
var never = []string{
	"testing",
	"github.com/oncemill/oncemill/internal/testenv",
	"github.com/oncemill/oncemill/consumers",
}

func TestDependencies(t *testing.T) {
	t.Parallel()
	for dir, modules := range allowed {
		out, err := exec.Command("go", "list", "-deps", dir).CombinedOutput()
		if err != nil {
			t.Fatalf("go list -deps %s: %v\n%s", dir, err, out)
		}
		for _, dep := range strings.Fields(string(out)) {
			within := func(module string) bool { return dep == module || strings.HasPrefix(dep, module+"/") }
			if slices.ContainsFunc(never, within) && (dir != "./oncetest" || dep != "testing") {
				t.Errorf("%s imports %s", dir, dep)
			}
			external := strings.Contains(strings.SplitN(dep, "/", 2)[0], ".")
			if external && !slices.ContainsFunc(modules, within) {
				t.Errorf("%s imports %s, which is not on its list", dir, dep)
			}
			if dir == "." && within("github.com/oncemill/oncemill/outbox") || dir == "./outbox" && dep == "github.com/oncemill/oncemill" {
				t.Errorf("%s imports %s: inbox and outbox do not know each other", dir, dep)
			}
		}
	}
}

func TestNothingImportsOncetest(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-f", `{{range .Imports}}{{.}} {{end}}`, "./...").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	if slices.Contains(strings.Fields(string(out)), "github.com/oncemill/oncemill/oncetest") {
		t.Error("a package imports oncetest, and with it package testing, which is for tests only")
	}
}
