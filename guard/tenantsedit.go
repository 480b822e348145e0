package guard

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// EditTenants changes a tenants file, or makes one that only its owner may read. edit
// gets the entries and returns what they shall be; its error leaves the file as it is,
// and is returned. What it returns is checked as ReadTenants checks a file.
//
// A reader sees the old file or the new one, never a part, and the new one is on the disk
// when EditTenants returns nil. The file keeps its mode and its owner; a symbolic link
// keeps pointing to it. Those who edit at the same time wait for one another: each
// flocks the directory of the file, which must be on a file system that can do that for
// a directory. Only Unix has it; elsewhere the error is errors.ErrUnsupported.
func EditTenants(file string, edit func(tenants []TenantEntry) ([]TenantEntry, error)) error {
	if file == "" {
		return errors.New("tenants file: no name is given")
	}
	real, err := filepath.EvalSymlinks(file)
	if errors.Is(err, fs.ErrNotExist) {
		if _, errLink := os.Lstat(file); errLink == nil {
			return fmt.Errorf("tenants file %s: it is a symbolic link to nothing: %w", file, err)
		}
		real, err = file, nil
	}
	if err != nil {
		return fmt.Errorf("tenants file %s: %w", file, err)
	}
	unlock, err := flock(filepath.Dir(real))
	if err != nil {
		return fmt.Errorf("tenants file %s: its directory: %w", file, err)
	}
	defer unlock()
	return editTenants(real, edit)
}

// editTenants changes a file that nobody else changes meanwhile.
func editTenants(file string, edit func([]TenantEntry) ([]TenantEntry, error)) error {
	tenants, err := ReadTenants(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if tenants, err = edit(tenants); err != nil {
		return err
	}
	content, err := encodeTenants(tenants)
	if err != nil {
		return fmt.Errorf("tenants file %s: %w", file, err)
	}
	if _, err := parseTenants(file, content); err != nil {
		return err
	}
	if err := replace(file, content); err != nil {
		return fmt.Errorf("tenants file %s: %w", file, err)
	}
	return nil
}

// replace puts a file in the place of another, if there is one.
func replace(file string, content []byte) (err error) {
	temp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*") // with mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			temp.Close()
			os.Remove(temp.Name())
		}
	}()
	if old, err := os.Stat(file); err == nil {
		if err := sameOwner(temp, old); err != nil {
			return err
		}
		if err := temp.Chmod(old.Mode().Perm()); err != nil {
			return err
		}
	}
	if _, err := temp.Write(content); err != nil {
		return err
	}
	if err := temp.Sync(); err != nil {
		return err
	}
	if err := temp.Close(); err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), file); err != nil {
		return err
	}
	return syncDirectory(filepath.Dir(file))
}

func syncDirectory(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
