package postgres

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// removeSegment removes the small System V shared memory segment of a server
// that was killed and not started again. Nothing else would, and there is room
// for a few thousand on a system. A server that has ended by itself has removed
// both the segment and the file that names it; the file of another server, on
// the same data, has another pid.
func removeSegment(pidFile string, pid int) {
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return
	}
	lines := strings.Split(string(text), "\n")
	if len(lines) < 7 || lines[0] != strconv.Itoa(pid) {
		return
	}
	var key, id int
	if n, _ := fmt.Sscan(lines[6], &key, &id); n == 2 {
		_, _ = unix.SysvShmCtl(id, unix.IPC_RMID, nil)
	}
}
