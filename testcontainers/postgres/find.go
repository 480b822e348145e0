package postgres

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
	"syscall"
	"time"

	"github.com/oncemill/oncemill/testcontainers/internal/cache"
	"github.com/oncemill/oncemill/testcontainers/internal/maven"
	"github.com/oncemill/oncemill/testcontainers/internal/process"
)

// The environment variables that change where Postgres comes from.
const (
	// BinVariable names the directory of initdb and postgres. Nothing else is
	// tried if it is set.
	BinVariable = "ONCEMILL_POSTGRES_BIN"
	// CacheVariable names the directory that a download is kept in. Where it is
	// not set that is the directory oncemill in the user's cache directory; for
	// root it is /var/cache/oncemill, because the server does not run as root
	// and cannot look into root's home.
	CacheVariable = cache.Variable
	// MavenVariable is the base URL of the Maven repository to download from,
	// in place of Maven Central.
	MavenVariable = maven.Variable
)

// OldestVersion is the oldest major version of Postgres that is used.
const OldestVersion = 14

// ErrNotFound is returned where this machine has no Postgres that works. The
// error that wraps it says what was tried.
var ErrNotFound = errors.New("no usable Postgres on this machine")

// Find returns the directory of the initdb and postgres of this machine: that in
// ONCEMILL_POSTGRES_BIN; else that of the initdb on PATH; else the newest in
// /usr/lib/postgresql; else one downloaded before. Each is asked for its
// version, as the user that the server is going to run as, and one that does not
// answer or is too old is passed over. It downloads nothing.
func Find(ctx context.Context) (bin string, err error) {
	user, err := serverUser()
	if err != nil {
		return "", err
	}
	if bin := os.Getenv(BinVariable); bin != "" {
		if err := try(ctx, bin, user); err != nil {
			return "", fmt.Errorf("%s=%s: %w", BinVariable, bin, err)
		}
		return bin, nil
	}
	tried := ErrNotFound
	for _, bin := range candidates() {
		err := try(ctx, bin, user)
		if err == nil {
			return bin, nil
		}
		tried = fmt.Errorf("%w; %s: %w", tried, bin, err)
	}
	return "", tried
}

// candidates returns the directories that may hold Postgres, the best first.
func candidates() []string {
	var bins []string
	if initdb, err := exec.LookPath("initdb"); err == nil {
		// Often a link into the real directory, which has the rest.
		if initdb, err = filepath.EvalSymlinks(initdb); err == nil {
			bins = append(bins, filepath.Dir(initdb))
		}
	}
	debian, _ := filepath.Glob("/usr/lib/postgresql/*/bin") // the pattern is well-formed
	slices.SortFunc(debian, func(a, b string) int {
		return majorInPath(b) - majorInPath(a)
	})
	bins = append(bins, debian...)
	if fetched, err := cache.Path(filepath.Join(downloadName(), "bin")); err == nil {
		if _, err := os.Stat(fetched); err == nil {
			bins = append(bins, fetched)
		}
	}
	return bins
}

// majorInPath returns the 15 in /usr/lib/postgresql/15/bin, or 0.
func majorInPath(bin string) int {
	major, _ := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
	return major
}

var versionPattern = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// try tells whether the programs in a directory run and are new enough.
func try(ctx context.Context, bin string, user *syscall.Credential) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for _, name := range []string{"initdb", "postgres"} {
		command := exec.CommandContext(ctx, filepath.Join(bin, name), "--version")
		command.Dir = "/"
		command.Env = environment()
		command.SysProcAttr = &syscall.SysProcAttr{Credential: user}
		output, err := command.CombinedOutput()
		if err != nil {
			text, _, _ := strings.Cut(string(output), "\n")
			return fmt.Errorf("%s --version: %w, saying %q", name, err, text)
		}
		match := versionPattern.FindSubmatch(output)
		if match == nil {
			return fmt.Errorf("%s --version says %q", name, strings.TrimSpace(string(output)))
		}
		if major, _ := strconv.Atoi(string(match[1])); major < OldestVersion {
			return fmt.Errorf("version %d is older than %d", major, OldestVersion)
		}
	}
	return nil
}

// serverUser returns whom to run the server as: Postgres refuses to run as root.
// nil means the current user.
func serverUser() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	return process.Nobody()
}
