package conditions_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// usageOf reads /proc.
func usageOf(t testing.TB, pid int) (u usage, ok bool) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	_, peak, _ := strings.Cut(string(status), "VmHWM:")
	kib, err := strconv.Atoi(strings.Fields(peak)[0])
	must(t, err)

	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(t, err)
	text := string(stat)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:]) // from the third on
	const tick = 10 * time.Millisecond                                  // USER_HZ is 100
	for _, ticks := range fields[11:13] {                               // utime and stime
		n, err := strconv.Atoi(ticks)
		must(t, err)
		u.cpu += time.Duration(n) * tick
	}
	u.peak = kib << 10
	return u, true
}
