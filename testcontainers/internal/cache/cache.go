// Package cache is the directory for what is made or downloaded once.
package cache

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Variable is the environment variable that names the directory.
const Variable = "ONCEMILL_CACHE"

// Path returns the path of something in the directory, which need not exist.
func Path(name string) (string, error) {
	if dir := os.Getenv(Variable); dir != "" {
		return filepath.Abs(filepath.Join(dir, name))
	}
	if os.Geteuid() == 0 {
		// Root's servers run as somebody else, who cannot look into root's home.
		return filepath.Join("/var/cache/oncemill", name), nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("%w; set %s to a directory for downloads", err, Variable)
	}
	return filepath.Join(dir, "oncemill", name), nil
}

// Prepare returns the path of something in the directory, which it creates, and
// keeps other processes away from it until unlock is called. The system does
// that if this process dies.
func Prepare(name string) (path string, unlock func(), err error) {
	if path, err = Path(name); err != nil {
		return "", nil, err
	}
	if err := MakeOpenDir(filepath.Dir(path)); err != nil {
		return "", nil, fmt.Errorf("%w; set %s to a directory for downloads", err, Variable)
	}
	file, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", nil, err
	}
	err = syscall.EINTR
	for errors.Is(err, syscall.EINTR) {
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		file.Close()
		return "", nil, fmt.Errorf("lock %s: %w", file.Name(), err)
	}
	return path, func() { file.Close() }, nil
}

// MakeOpenDir makes a directory, and those above it, unless they are there, so
// that everyone may look into them, whatever the umask.
func MakeOpenDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := MakeOpenDir(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); errors.Is(err, os.ErrExist) {
		return nil // another process was faster
	} else if err != nil {
		return err
	}
	return os.Chmod(dir, 0o755)
}
