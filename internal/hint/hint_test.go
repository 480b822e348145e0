package hint_test

import (
	"os/exec"
	"testing"

	"github.com/oncemill/oncemill/internal/hint"
)

func TestResolve(t *testing.T) {
	t.Parallel()
	for want, got := range map[string]string{
		"oncemill claims resolve --token 7 mails order-7":                  hint.Resolve("", "mails", "order-7", 7),
		"oncemill claims resolve --token 7 'my mails' 'order $7'":          hint.Resolve("oncemill", "my mails", "order $7", 7),
		"oncemill claims resolve --schema 'its own' --token 7 -- mails -k": hint.Resolve("its own", "mails", "-k", 7),
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestAShellReadsWhatWasQuoted(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("bash is not installed")
	}
	for _, text := range []string{"plain", "", "a b", "it's", `\n "x" $y`, "line\nbreak 'x' \\", "\xff\x01é", "~", "*", "#", "a=b"} {
		out, err := exec.Command("bash", "-c", "printf %s "+hint.Quote(text)).Output()
		if err != nil || string(out) != text {
			t.Errorf("%q became %s, which is read as %q (%v)", text, hint.Quote(text), out, err)
		}
	}
}
