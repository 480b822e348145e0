package postgres

import (
	"archive/tar"
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/ulikunitz/xz"
)

// unpackLimit is the most that one file of the archive may unpack to, in bytes.
const unpackLimit = 256 << 20

// unpack puts what is in the archive inside a jar into a directory.
func unpack(jar, dir string) error {
	reader, err := zip.OpenReader(jar)
	if err != nil {
		return err
	}
	defer reader.Close()
	for _, file := range reader.File {
		if path.Ext(file.Name) != ".txz" {
			continue
		}
		content, err := file.Open()
		if err != nil {
			return err
		}
		defer content.Close()
		plain, err := xz.NewReader(content)
		if err != nil {
			return err
		}
		return unpackTar(plain, dir)
	}
	return errors.New("there is no .txz archive in the jar")
}

// unpackTar puts a tar archive into a directory. The checksum has been verified
// by now; all the same nothing is written outside, for os.Root follows neither
// ".." nor a link that leads out.
func unpackTar(r io.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for archive := tar.NewReader(r); ; {
		header, err := archive.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := unpackEntry(root, header, archive); err != nil {
			return fmt.Errorf("%s: %w", header.Name, err)
		}
	}
}

func unpackEntry(root *os.Root, header *tar.Header, content io.Reader) error {
	name := strings.TrimSuffix(header.Name, "/")
	mode := os.FileMode(header.Mode)&0o755 | 0o644
	switch header.Typeflag {
	case tar.TypeDir:
		if err := root.MkdirAll(name, 0o755); err != nil {
			return err
		}
		return root.Chmod(name, 0o755) // whatever the umask
	case tar.TypeSymlink:
		if path.IsAbs(header.Linkname) || !within(path.Join(path.Dir(name), header.Linkname)) {
			return fmt.Errorf("the link leads out of the archive, to %s", header.Linkname)
		}
		return root.Symlink(header.Linkname, name)
	case tar.TypeReg:
		if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		file, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
		if err != nil {
			return err
		}
		defer file.Close()
		if header.Size > unpackLimit {
			return fmt.Errorf("%d bytes are too many", header.Size)
		}
		if _, err := io.Copy(file, content); err != nil {
			return err
		}
		if err := file.Chmod(mode); err != nil {
			return err
		}
		return file.Close()
	default:
		return fmt.Errorf("unexpected kind of entry %q", header.Typeflag)
	}
}

// within tells whether a cleaned path stays below the directory it starts from.
func within(name string) bool {
	return !path.IsAbs(name) && name != ".." && !strings.HasPrefix(name, "../")
}
