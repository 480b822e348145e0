// Package maven downloads files from a Maven repository and checks them against
// checksums that the caller has pinned.
package maven

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"reflect"
	"strings"
	"sync"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// Variable is the environment variable with the base URL of the repository to
// download from, in place of Maven Central.
const Variable = "ONCEMILL_MAVEN_URL"

// ErrChecksum is returned for a download that is not the file that was expected.
// Another attempt would not make it another file.
var ErrChecksum = errors.New("the checksum is wrong")

// errRefused is an answer that would be the same another time.
var errRefused = errors.New("the repository refuses")

const (
	attempts  = 3 // how often a download is tried before giving up
	sizeLimit = 64 << 20
	timeLimit = 10 * time.Minute // for one attempt
)

// A File is one in a Maven repository.
type File struct {
	Path   string // below the repository's base URL
	SHA256 string // in hexadecimal; it was computed when the version was chosen
}

// Address returns the URL that the file is downloaded from.
func (f File) Address() string {
	base := os.Getenv(Variable)
	if base == "" {
		base = centralRepository()
	}
	return strings.TrimRight(base, "/") + "/" + strings.TrimLeft(f.Path, "/")
}

// centralRepository is the repository that embedded-postgres, the Go library,
// downloads from by default. It is not asked to do so itself because it neither
// pins checksums nor can run as root.
func centralRepository() string {
	return reflect.ValueOf(embeddedpostgres.DefaultConfig()).FieldByName("binaryRepositoryURL").String()
}

// A Fetcher downloads the files of one program. Its methods may be called from
// several goroutines.
type Fetcher struct {
	Name     string    // the program's, which every line of progress begins with
	Bytes    int64     // the size of all files together; 0 means there is only one
	Progress io.Writer // where a line is written every few seconds of a long download

	mu      sync.Mutex
	written int64     // bytes, of all files
	last    time.Time // when the last line was written
}

// Get downloads a file and checks it. With an error that wraps ErrChecksum the
// file must not be used.
func (f *Fetcher) Get(ctx context.Context, file File, target string) error {
	address := file.Address()
	for attempt := 1; ; attempt++ {
		sum, err := f.save(ctx, address, target)
		if err == nil && sum != file.SHA256 {
			return fmt.Errorf("%w: %s has SHA-256 %s, not %s", ErrChecksum, address, sum, file.SHA256)
		}
		if err == nil || attempt == attempts || ctx.Err() != nil || errors.Is(err, errRefused) {
			return err
		}
		f.say("%v; trying again", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(attempt) * time.Second):
		}
	}
}

// save downloads a file and returns its SHA-256 in hexadecimal.
func (f *Fetcher) save(ctx context.Context, address, target string) (sum string, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeLimit)
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
	out, err := os.Create(target)
	if err != nil {
		return "", err
	}
	defer out.Close()
	hash := sha256.New()
	size, err := io.Copy(io.MultiWriter(out, hash, meter{f, response.ContentLength}), io.LimitReader(response.Body, sizeLimit))
	if err != nil {
		return "", fmt.Errorf("%s: after %d bytes: %w", address, size, err)
	}
	return hex.EncodeToString(hash.Sum(nil)), out.Close()
}

func (f *Fetcher) say(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fmt.Fprintf(f.Progress, f.Name+": "+format+"\n", args...)
}

// A meter counts what is written to it, and says so every few seconds.
type meter struct {
	*Fetcher
	size int64 // of the file; -1 if unknown
}

func (m meter) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.written += int64(len(p))
	if m.last.IsZero() {
		m.last = time.Now()
	}
	if time.Since(m.last) < 3*time.Second {
		return len(p), nil
	}
	m.last = time.Now()
	total := m.Bytes
	if total == 0 {
		total = m.size
	}
	if total > 0 {
		fmt.Fprintf(m.Progress, "%s: %.1f of %.1f MB\n", m.Name, float64(m.written)/1e6, float64(total)/1e6)
	} else {
		fmt.Fprintf(m.Progress, "%s: %.1f MB\n", m.Name, float64(m.written)/1e6)
	}
	return len(p), nil
}
