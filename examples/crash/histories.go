package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// shownLines is how long a history may be.
const shownLines = 120

// explain gives the anomalies that are shown their histories: what the processes have
// written of their keys, the events of their claims, and the faults of that time.
func (r *run) explain(ctx context.Context) error {
	wanted := make(map[string][]string) // lines, by key
	for _, group := range r.verdict.byKind() {
		for _, a := range group[:min(len(group), shownAnomalies)] {
			for _, key := range a.keys {
				wanted[key] = nil
			}
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	wanted[nemesisKey] = nil
	files, _ := filepath.Glob(filepath.Join(r.dir, "*.trace")) // the pattern is well-formed
	for _, file := range files {
		if err := readTrace(file, wanted); err != nil {
			return err
		}
	}
	if err := r.readEvents(ctx, wanted); err != nil {
		return err
	}
	for i := range r.verdict.found {
		a := &r.verdict.found[i]
		a.history = history(a.keys, wanted)
	}
	return nil
}

// readTrace collects the lines of the keys that are wanted.
func readTrace(name string, wanted map[string][]string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		fields := strings.SplitN(lines.Text(), " ", 3)
		if len(fields) < 3 {
			continue
		}
		if known, ok := wanted[fields[1]]; ok {
			wanted[fields[1]] = append(known, lines.Text())
		}
	}
	return lines.Err()
}

// readEvents adds what Oncemill has noted of claims.
func (r *run) readEvents(ctx context.Context, wanted map[string][]string) error {
	return r.each(ctx, `SELECT at, consumer, key, kind, COALESCE(token, 0), COALESCE(actor, ''), COALESCE(note, '') FROM oncemill.events`,
		func(scan func(...any) error) error {
			var at time.Time
			var consumer, key, kind, actor, note string
			var token int64
			if err := scan(&at, &consumer, &key, &kind, &token, &actor, &note); err != nil {
				return err
			}
			if known, ok := wanted[key]; ok {
				wanted[key] = append(known, fmt.Sprintf("%s %s event of %s: %s, token %d, by %s %s", at.UTC().Format(traceTime), key, consumer, kind, token, actor, note))
			}
			return nil
		})
}

// history merges the lines of some keys and of the faults in their time, in its order.
func history(keys []string, wanted map[string][]string) string {
	var all []string
	for _, key := range keys {
		all = append(all, wanted[key]...)
	}
	if len(all) == 0 {
		return ""
	}
	from, to := slices.Min(all), slices.Max(all)
	for _, fault := range wanted[nemesisKey] {
		if fault > from && begunBy(fault) < to {
			all = append(all, fault)
		}
	}
	slices.Sort(all)
	text := ""
	for _, line := range all[:min(len(all), shownLines)] {
		text += "  " + line + "\n"
	}
	if more := len(all) - shownLines; more > 0 {
		text += fmt.Sprintf("  and %d lines more\n", more)
	}
	return text
}

// begunBy returns when the fault in a line began.
func begunBy(line string) string {
	at := strings.LastIndex(line, fromOn)
	if at < 0 {
		return line
	}
	return line[at+len(fromOn):]
}
