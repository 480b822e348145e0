package pgbouncer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"time"
)

// BinVariable is the environment variable that names the program. Nothing else is tried if
// it is set.
const BinVariable = "ONCEMILL_PGBOUNCER_BIN"

// Oldest is the oldest version 1.N that prepared statements work through, in pools of
// transactions.
const Oldest = 21

// ErrNotFound is returned where there is no PgBouncer that can be used. An error that
// wraps it says what was tried.
var ErrNotFound = errors.New("needs PgBouncer 1.21 or later (Debian: pgbouncer), on PATH or named by " + BinVariable)

// Find returns the PgBouncer of this machine: that in ONCEMILL_PGBOUNCER_BIN, else that on
// PATH or in /usr/sbin.
func Find(ctx context.Context) (bin string, err error) {
	if bin := os.Getenv(BinVariable); bin != "" {
		if err := try(ctx, bin); err != nil {
			return "", fmt.Errorf("%s=%s: %w", BinVariable, bin, err)
		}
		return bin, nil
	}
	tried := ErrNotFound
	for _, name := range []string{"pgbouncer", "/usr/sbin/pgbouncer", "/usr/local/sbin/pgbouncer"} {
		bin, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if err = try(ctx, bin); err == nil {
			return bin, nil
		}
		tried = fmt.Errorf("%w; %s: %w", tried, bin, err)
	}
	return "", tried
}

var versionPattern = regexp.MustCompile(`PgBouncer 1\.(\d+)`)

// try tells whether a program runs and is new enough.
func try(ctx context.Context, bin string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	output, err := exec.CommandContext(ctx, bin, "--version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("--version: %w", err)
	}
	match := versionPattern.FindSubmatch(output)
	if match == nil {
		return fmt.Errorf("--version says %.100q", output)
	}
	if minor, _ := strconv.Atoi(string(match[1])); minor < Oldest {
		return fmt.Errorf("version 1.%d is older than 1.%d", minor, Oldest)
	}
	return nil
}
