//go:build unix && !linux

package process

import (
	"fmt"
	"os/exec"
	"strings"
)

// state returns the letter of a process's state, such as T for stopped and Z for
// ended, or 0 if there is no such process.
func state(pid int) (byte, error) {
	processes, err := table()
	return processes[pid].state, err
}

// children returns the processes that a process has forked and that are alive.
func children(parent int) ([]int, error) {
	processes, err := table()
	var pids []int
	for pid, p := range processes {
		if p.parent == parent && p.state != 'Z' {
			pids = append(pids, pid)
		}
	}
	return pids, err
}

type process struct {
	parent int
	state  byte
}

func table() (map[int]process, error) {
	output, err := exec.Command("ps", "-A", "-o", "pid=,ppid=,state=").Output()
	if err != nil {
		return nil, fmt.Errorf("ps: %w", err)
	}
	processes := make(map[int]process)
	for line := range strings.Lines(string(output)) {
		var pid int
		var p process
		if _, err := fmt.Sscanf(line, "%d %d %c", &pid, &p.parent, &p.state); err == nil {
			processes[pid] = p
		}
	}
	return processes, nil
}
