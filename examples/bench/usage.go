package main

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// usage is how much of the processors everybody has used.
type usage struct{ worker, postgres, nats time.Duration }

// ticks is how many a second the kernel counts, on every platform of Linux that Go knows.
const ticks = 100

// A stat is what /proc/PID/stat says of a process.
type stat struct {
	parent   int
	own      time.Duration
	children time.Duration // of those that have ended
}

// readStat reads one. The name of a program may have spaces and parentheses in it.
func readStat(text string) (st stat, err error) {
	_, after, found := cutLast(text, ") ")
	fields := strings.Fields(after)
	if !found || len(fields) < 15 {
		return st, fmt.Errorf("%.100q is not what /proc/PID/stat should be", text)
	}
	number := func(i int) (n int) {
		if err == nil {
			n, err = strconv.Atoi(fields[i-3]) // counted from 1, as in proc(5), of which 2 are cut off
		}
		return n
	}
	st.parent = number(4)
	st.own = time.Duration(number(14)+number(15)) * time.Second / ticks
	st.children = time.Duration(number(16)+number(17)) * time.Second / ticks
	return st, err
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// servers is how much the servers have used so far: nothing where there is no /proc.
func (s *stage) servers() (u usage, err error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return u, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		st, err := readStat(string(text))
		if err != nil {
			return u, err
		}
		switch pid := filepath.Base(filepath.Dir(file)); {
		case pid == strconv.Itoa(s.postmaster):
			u.postgres += st.own + st.children
		case st.parent == s.postmaster && s.postmaster > 0:
			u.postgres += st.own
		case pid == strconv.Itoa(s.nats.PID()):
			u.nats += st.own
		}
	}
	return u, nil
}

// postmasterOf is the process of a Postgres, 0 where there is no /proc.
func postmasterOf(ctx context.Context, address string) (pid int, err error) {
	db, err := sql.Open("postgres", address)
	if err != nil {
		return 0, err
	}
	defer db.Close()
	var backend int
	if err := db.QueryRowContext(ctx, `SELECT pg_backend_pid()`).Scan(&backend); err != nil {
		return 0, err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", backend))
	if err != nil {
		return 0, nil
	}
	st, err := readStat(string(text))
	return st.parent, err
}
