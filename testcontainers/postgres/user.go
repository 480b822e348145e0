package postgres

import (
	"fmt"
	"os/exec"
	"syscall"
)

// reachable tells whether the server's user can enter a directory. What root
// makes under its home, or testing's TempDir for it, cannot be entered by others.
func reachable(dir string, user *syscall.Credential) error {
	if user == nil {
		return nil
	}
	command := exec.Command("/bin/sh", "-c", ":")
	command.Dir = dir
	command.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	if err := command.Run(); err != nil {
		return fmt.Errorf("root's Postgres runs as user %d, who cannot enter %s: %w; take a directory that others may enter, with all above it",
			user.Uid, dir, err)
	}
	return nil
}

// environment returns the environment of Postgres's programs. The caller's is
// not passed on: PGDATA, PGPORT or a locale in it would lead them astray.
func environment() []string {
	return []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C", "HOME=/"}
}
