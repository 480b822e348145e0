package kafkaserver_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oncemill/oncemill/testcontainers/kafkaserver"
)

// The tests in this file set environment variables and run one after the other.

func TestWithoutJavaTheErrorSaysWhatToInstall(t *testing.T) {
	none(t)
	_, err := kafkaserver.Start(t.Context(), kafkaserver.Options{})
	if !errors.Is(err, kafkaserver.ErrNoJava) {
		t.Fatalf("the error is %v", err)
	}
	for _, want := range []string{"Java 17", "openjdk-17-jre-headless", kafkaserver.JavaVariable} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not mention %s: %v", want, err)
		}
	}
}

func TestAJavaThatDoesNotRunOrIsTooOldIsPassedOver(t *testing.T) {
	for name, script := range map[string]string{
		"broken":   "echo no such library >&2; exit 127",
		"too old":  properties("11"),
		"very old": properties("1.8"),
		"other":    "echo hello",
	} {
		t.Run(name, func(t *testing.T) {
			none(t)
			old := program(t, script)
			t.Setenv("JAVA_HOME", filepath.Dir(filepath.Dir(old)))
			if _, err := kafkaserver.FindJava(t.Context()); !errors.Is(err, kafkaserver.ErrNoJava) || !strings.Contains(err.Error(), old) {
				t.Errorf("the error is %v", err)
			}
			t.Setenv("PATH", filepath.Dir(program(t, properties("21")))+":"+shell)
			if java, err := kafkaserver.FindJava(t.Context()); err != nil || java != "/the/home/bin/java" {
				t.Errorf("found %s, %v", java, err)
			}
		})
	}
}

func TestAJavaThatIsNamedMustWork(t *testing.T) {
	t.Setenv("PATH", filepath.Dir(program(t, properties("21")))+":"+shell)
	t.Setenv(kafkaserver.JavaVariable, program(t, properties("11")))
	_, err := kafkaserver.FindJava(t.Context())
	if err == nil || errors.Is(err, kafkaserver.ErrNoJava) || !strings.Contains(err.Error(), "is Java 11") {
		t.Errorf("the error is %v", err)
	}
}

func TestWhatIsMeantForOtherProgramsDoesNotReachJava(t *testing.T) {
	none(t)
	t.Setenv("JAVA_TOOL_OPTIONS", "-XX:NoSuchOption")
	t.Setenv(kafkaserver.JavaVariable, program(t, `[ -z "$JAVA_TOOL_OPTIONS" ] || exit 1; `+properties("17")))
	if _, err := kafkaserver.FindJava(t.Context()); err != nil {
		t.Error(err)
	}
}

// shell is where a script finds its programs.
const shell = "/usr/local/bin:/usr/bin:/bin"

// none takes every Java out of the environment.
func none(t *testing.T) {
	t.Helper()
	t.Setenv(kafkaserver.JavaVariable, "")
	t.Setenv("JAVA_HOME", "")
	t.Setenv("PATH", "/nowhere")
}

// program makes a script and returns its path, which ends with bin/java.
func program(t *testing.T, script string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "bin", "java")
	if err := os.Mkdir(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

// properties returns a script that tells a version as Java does.
func properties(version string) string {
	return fmt.Sprintf(`printf 'Property settings:\n    java.home = /the/home\n    java.specification.version = %s\n' >&2`, version)
}
