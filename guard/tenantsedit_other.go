//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package guard

import (
	"errors"
	"io/fs"
	"os"
)

func flock(string) (unlock func(), err error) { return nil, errors.ErrUnsupported }

func sameOwner(*os.File, fs.FileInfo) error { return nil }
