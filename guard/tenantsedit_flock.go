//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package guard

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// flock waits until nobody else has a directory. A process that ends lets go of it.
func flock(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		if err = syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("flock %s: %w (is it on a network file system?)", dir, err)
	}
	return func() { d.Close() }, nil
}

// sameOwner gives a file to the owner of another.
func sameOwner(f *os.File, other fs.FileInfo) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	is, ok := info.Sys().(*syscall.Stat_t)
	want, okWant := other.Sys().(*syscall.Stat_t)
	if !ok || !okWant || is.Uid == want.Uid && is.Gid == want.Gid {
		return nil
	}
	if err := f.Chown(int(want.Uid), int(want.Gid)); err != nil {
		return fmt.Errorf("cannot keep its owner: %w (edit it as its owner or as root)", err)
	}
	return nil
}
