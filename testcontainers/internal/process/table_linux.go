package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// state returns the letter of a process's state, such as T for stopped and Z for
// ended, or 0 if there is no such process.
func state(pid int) (byte, error) {
	s, _, err := stat(strconv.Itoa(pid))
	return s, err
}

// children returns the processes that a process has forked and that are alive.
func children(parent int) ([]int, error) {
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, entry := range entries {
		name := filepath.Base(entry)
		s, ppid, err := stat(name)
		if err != nil {
			return nil, err
		}
		if ppid != parent || s == 0 || s == 'Z' {
			continue
		}
		pid, err := strconv.Atoi(name)
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// stat reads a process's state and its parent. The state is 0 if there is no
// such process.
func stat(pid string) (state byte, parent int, err error) {
	text, err := os.ReadFile("/proc/" + pid + "/stat")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	// The second field is the name in parentheses, which may hold anything.
	_, err = fmt.Sscanf(string(text[bytes.LastIndexByte(text, ')')+1:]), " %c %d", &state, &parent)
	if err != nil {
		return 0, 0, fmt.Errorf("/proc/%s/stat: %w", pid, err)
	}
	return state, parent, nil
}
