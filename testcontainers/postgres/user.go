package postgres

import (
	"fmt"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
)

// nobody returns the unprivileged user that a server started by root runs as.
func nobody() (*syscall.Credential, error) {
	u, err := user.Lookup("nobody")
	if err != nil {
		return nil, fmt.Errorf("root cannot run Postgres, and there is nobody else to do it: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

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
