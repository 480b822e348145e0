package postgres

import (
	"bufio"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// removeSegment removes the small System V shared memory segment of a server
// that was killed and not started again. Nothing else would, and there is room
// for a few thousand on a system. A server that has ended by itself has removed
// both the segment and the file that names it.
func removeSegment(pidFile string) {
	file, err := os.Open(pidFile)
	if err != nil {
		return
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for line := 1; lines.Scan(); line++ {
		var key, id int
		if line != 7 {
			continue
		}
		if n, _ := fmt.Sscan(lines.Text(), &key, &id); n == 2 {
			_, _ = unix.SysvShmCtl(id, unix.IPC_RMID, nil)
		}
	}
}
