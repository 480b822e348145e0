package main_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The demo keeps its promise on a small run, and leaves nothing behind.
func TestQuickstart(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "quickstart")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	var stdout, stderr bytes.Buffer
	demo := exec.Command(binary, "-messages", "600")
	demo.Stdout, demo.Stderr = &stdout, &stderr
	if err := demo.Run(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, stdout.String(), stderr.String())
	}
	lines := strings.Split(strings.TrimSpace(stdout.String()), "\n")
	last := lines[len(lines)-1]
	want := regexp.MustCompile(`^demo: broker=nats published=600 deliveries=\d+ duplicates=[1-9]\d* effects=600 lost=0 twice=0$`)
	if !want.MatchString(last) {
		t.Errorf("the last line is %q", last)
	}
	for _, line := range processes(t) {
		if strings.Contains(line, binary) {
			t.Errorf("left behind: %s", line)
		}
	}
}

func TestQuickstartRefusesWhatItCannotShow(t *testing.T) {
	for arg, want := range map[string]string{"-messages=10": "500 or more", "-broker=carrier-pigeon": "carrier-pigeon"} {
		out, err := exec.Command("go", "run", ".", arg).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v, %s", arg, err, out)
		}
	}
}

// processes returns the command lines of all processes, where /proc has them.
func processes(t *testing.T) (lines []string) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if line, err := os.ReadFile(file); err == nil {
			lines = append(lines, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return lines
}
