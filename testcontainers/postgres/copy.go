package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// What a copy of a running server leaves out: directories whose content belongs
// to the running server or is made anew, and its files of that kind.
var (
	leftOutContent = []string{"pg_wal", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans"}
	leftOutFiles   = []string{"postmaster.pid", "postmaster.opts", "backup_label", "tablespace_map", standbySignal}
	leftOutPrefix  = []string{"pgsql_tmp", "pg_internal.init"}
)

// copyData copies the data directory of a server that runs, and whose files
// change and vanish meanwhile: its WAL makes up for that.
func (s *Server) copyData(ctx context.Context, from string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != from {
			return nil
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		to := filepath.Join(s.data(), name)
		switch {
		case leftOut(name) && entry.IsDir():
			return fs.SkipDir
		case leftOut(name):
			return nil
		case entry.IsDir():
			return s.copyDir(name, to)
		case entry.Type().IsRegular():
			return s.copyFile(path, to)
		}
		return fmt.Errorf("%s is neither a file nor a directory; a pair has no tablespaces", path)
	})
}

// leftOut tells whether something is not copied at all.
func leftOut(name string) bool {
	base := filepath.Base(name)
	return slices.Contains(leftOutFiles, name) ||
		slices.ContainsFunc(leftOutPrefix, func(prefix string) bool { return strings.HasPrefix(base, prefix) })
}

// copyDir makes a directory, and tells whether to go into it.
func (s *Server) copyDir(name, to string) error {
	if err := s.makeEmpty(to); err != nil {
		return err
	}
	if !slices.Contains(leftOutContent, name) {
		return nil
	}
	if name == "pg_wal" {
		if err := s.makeEmpty(filepath.Join(to, "archive_status")); err != nil {
			return err
		}
	}
	return fs.SkipDir
}

func (s *Server) makeEmpty(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return s.give(dir)
}

func (s *Server) copyFile(from, to string) error {
	in, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close(), s.give(to))
}

// write makes a file in the data directory.
func (s *Server) write(name, text string) error {
	file := filepath.Join(s.data(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	return s.give(file)
}

// add appends to a file in the data directory.
func (s *Server) add(name, text string) error {
	file, err := os.OpenFile(filepath.Join(s.data(), name), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(text)
	return errors.Join(err, file.Close())
}
