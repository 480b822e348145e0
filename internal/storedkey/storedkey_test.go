package storedkey_test

import (
	"strings"
	"testing"

	"github.com/oncemill/oncemill/internal/storedkey"
)

// Whatever begins with a prefix is found by it, however it is stored.
func TestTheRangesOfAPrefixHoldWhatBeginsWithIt(t *testing.T) {
	t.Parallel()
	keys := []string{"a", "ab", "ab\x00", "ab\xff", "aé", "a\U0010FFFF", "a\U0010FFFFb", "\uD7FF", "\uD7FFx", "\uE000", "oncemill:", "oncemill:hex:61",
		"on", "z", strings.Repeat("a", 512), "\xff", "\xff\xfe", "\U0010FFFF", "\U0010FFFF\U0010FFFF", ""}
	for _, prefix := range keys {
		for _, key := range keys {
			if key == "" {
				continue
			}
			found := 0
			for _, r := range storedkey.Prefixed(prefix) {
				stored := storedkey.Of(key)
				if stored >= r.From && (r.To == "" || stored < r.To) && strings.HasPrefix(storedkey.Shown(stored), prefix) {
					found++
				}
			}
			if begins := strings.HasPrefix(key, prefix); begins && found != 1 || !begins && found != 0 {
				t.Errorf("%q is in %d ranges of the prefix %q", key, found, prefix)
			}
		}
	}
}

func TestAKeyIsReadBackUnlessItIsHashed(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"a", "a\x00", "\xff", "oncemill:x", "é", strings.Repeat("\xff", 249)} {
		if stored := storedkey.Of(key); storedkey.Shown(stored) != key || storedkey.IsHash(stored) {
			t.Errorf("%q is stored as %q", key, stored)
		}
	}
	long := storedkey.Of(strings.Repeat("x", 513))
	if storedkey.Shown(long) != long || !storedkey.IsHash(long) {
		t.Errorf("got %q", long)
	}
}
