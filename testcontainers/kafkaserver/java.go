package kafkaserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// JavaVariable is the environment variable with the path of the program java.
// Nothing else is tried if it is set.
const JavaVariable = "ONCEMILL_JAVA"

// OldestJava is the oldest version of Java that Kafka runs on.
const OldestJava = 17

// ErrNoJava is returned where this machine has no Java that Kafka runs on. The
// error that wraps it says what was tried.
var ErrNoJava = errors.New("no Java 17 or later on this machine: install it (Debian: openjdk-17-jre-headless) or set ONCEMILL_JAVA to the path of the program java")

// FindJava returns the path of the program java of this machine: that in
// ONCEMILL_JAVA; else that in the directory JAVA_HOME; else that on PATH. Each is
// asked for its version, and one that does not answer or is too old is passed
// over.
func FindJava(ctx context.Context) (java string, err error) {
	if java := os.Getenv(JavaVariable); java != "" {
		if java, err = try(ctx, java); err != nil {
			return "", fmt.Errorf("%s: %w", JavaVariable, err)
		}
		return java, nil
	}
	tried := ErrNoJava
	for _, candidate := range candidates() {
		java, err := try(ctx, candidate)
		if err == nil {
			return java, nil
		}
		tried = fmt.Errorf("%w; %w", tried, err)
	}
	return "", tried
}

// candidates returns the programs that may be Java, the best first.
func candidates() []string {
	var programs []string
	if home := os.Getenv("JAVA_HOME"); home != "" {
		programs = append(programs, filepath.Join(home, "bin", "java"))
	}
	if java, err := exec.LookPath("java"); err == nil {
		programs = append(programs, java)
	}
	return programs
}

var (
	versionPattern = regexp.MustCompile(`(?m)^ *java\.specification\.version = (?:1\.)?(\d+)`)
	homePattern    = regexp.MustCompile(`(?m)^ *java\.home = (.*)$`)
)

// try returns the path of a Java that runs and is new enough. It need not be the
// one that was asked: a version manager has a script on PATH, and a signal to
// the script would not reach what it runs.
func try(ctx context.Context, program string) (java string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	command := exec.CommandContext(ctx, program, "-XshowSettings:properties", "-version")
	command.Env = environment()
	output, err := command.CombinedOutput()
	if err != nil {
		text, _, _ := strings.Cut(string(output), "\n")
		return "", fmt.Errorf("%s -version: %w, saying %q", program, err, text)
	}
	version, home := versionPattern.FindSubmatch(output), homePattern.FindSubmatch(output)
	if version == nil || home == nil {
		return "", fmt.Errorf("%s -version does not tell the version", program)
	}
	if n, _ := strconv.Atoi(string(version[1])); n < OldestJava {
		return "", fmt.Errorf("%s is Java %d, which is older than %d", program, n, OldestJava)
	}
	return filepath.Join(strings.TrimSpace(string(home[1])), "bin", "java"), nil
}

// environment returns the environment of Java: the caller's, without what would
// lead it astray.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return slices.Contains([]string{"CLASSPATH", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"}, name)
	})
}
