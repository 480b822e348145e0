package postgres_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ulikunitz/xz"

	"github.com/oncemill/oncemill/testcontainers/postgres"
)

// downloadVariable allows the test that downloads the real thing.
const downloadVariable = "ONCEMILL_TEST_DOWNLOAD"

// The tests in this file set environment variables and run one after the other.

func TestTheRealDownloadRuns(t *testing.T) {
	onlyLinux(t)
	if os.Getenv(downloadVariable) != "1" {
		t.Skipf("downloads 15 MB: set %s=1", downloadVariable)
	}
	t.Setenv(postgres.CacheVariable, openDir(t))
	bin, err := postgres.Fetch(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	server := start(t, postgres.Options{Bin: bin})
	db := open(t, server.URL(""))
	if version := query[string](t, db, "SHOW server_version"); !strings.HasPrefix(version, "18.") {
		t.Errorf("the version is %s", version)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestADownloadWithAWrongChecksumIsRefused(t *testing.T) {
	onlyLinux(t)
	repository(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(jar(t, fake()))
	}))
	cache := openDir(t)
	t.Setenv(postgres.CacheVariable, cache)

	_, err := postgres.Fetch(t.Context(), t.Output())
	if !errors.Is(err, postgres.ErrChecksum) {
		t.Fatalf("the error is %v", err)
	}
	if !strings.Contains(err.Error(), "it was not unpacked") {
		t.Errorf("the error does not say what happened to the file: %v", err)
	}
	left, _ := filepath.Glob(filepath.Join(cache, "postgres-*", "*"))
	work, _ := filepath.Glob(filepath.Join(cache, ".fetch-*"))
	if left = append(left, work...); len(left) > 0 {
		t.Errorf("%v was left behind", left)
	}
}

func TestADownloadIsUnpackedOnceAndFoundAgain(t *testing.T) {
	onlyLinux(t)
	var requests atomic.Int32
	content := jar(t, fake())
	repository(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) == 1 {
			http.Error(w, "try later", http.StatusServiceUnavailable)
			return
		}
		if r.URL.Path != postgres.ArtifactPath() {
			t.Errorf("asked for %s", r.URL.Path)
		}
		_, _ = w.Write(content)
	}))
	defer postgres.PinChecksum(sum(content))()
	t.Setenv(postgres.CacheVariable, openDir(t))

	type result struct {
		bin string
		err error
	}
	results := make(chan result, 3)
	for range cap(results) {
		go func() {
			bin, err := postgres.Fetch(t.Context(), t.Output())
			results <- result{bin, err}
		}()
	}
	var bin string
	for range cap(results) {
		r := <-results
		if r.err != nil {
			t.Fatal(r.err)
		}
		bin = r.bin
	}
	if n := requests.Load(); n != 2 { // one failed
		t.Errorf("there were %d requests", n)
	}
	link, err := os.ReadFile(filepath.Join(bin, "..", "lib", "link"))
	if err != nil || string(link) != "text" {
		t.Errorf("the link leads to %q, %v", link, err)
	}

	t.Setenv("PATH", "/nowhere")
	if machine, _ := filepath.Glob("/usr/lib/postgresql/*/bin"); len(machine) == 0 {
		if found, err := postgres.Find(t.Context()); found != bin || err != nil {
			t.Errorf("found %s, %v", found, err)
		}
	}
}

func TestAnUnreachableRepositoryIsNamed(t *testing.T) {
	onlyLinux(t)
	address := repository(t, http.NotFoundHandler())
	t.Setenv(postgres.CacheVariable, openDir(t))
	_, err := postgres.Fetch(t.Context(), t.Output())
	for _, want := range []string{address, "404", "initdb on PATH", postgres.BinVariable, postgres.MavenVariable} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not mention %s: %v", want, err)
		}
	}
}

func TestAnArchiveWritesNothingOutsideItsDirectory(t *testing.T) {
	onlyLinux(t)
	for name, entries := range map[string][]tar.Header{
		"a parent directory": {{Name: "../evil", Typeflag: tar.TypeReg}},
		"an absolute path":   {{Name: "/tmp/oncemill-evil", Typeflag: tar.TypeReg}},
		"a link out":         {{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "../../evil"}},
		"an absolute link":   {{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "/tmp"}},
		"a hard link":        {{Name: "a", Typeflag: tar.TypeLink, Linkname: "b"}},
		"a file twice":       {{Name: "a", Typeflag: tar.TypeReg}, {Name: "a", Typeflag: tar.TypeReg}},
	} {
		t.Run(name, func(t *testing.T) {
			content := jar(t, entries)
			repository(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) }))
			defer postgres.PinChecksum(sum(content))()
			cache := openDir(t)
			t.Setenv(postgres.CacheVariable, filepath.Join(cache, "deep", "cache"))
			if _, err := postgres.Fetch(t.Context(), t.Output()); err == nil {
				t.Error("it was unpacked")
			}
			_ = filepath.Walk(cache, func(path string, _ os.FileInfo, _ error) error {
				if strings.Contains(path, "evil") {
					t.Errorf("%s was written", path)
				}
				return nil
			})
		})
	}
}

func TestADirectoryThatIsNamedMustWork(t *testing.T) {
	t.Setenv(postgres.BinVariable, "/no/such/directory")
	_, err := postgres.Locate(t.Context(), t.Output())
	if err == nil || !strings.Contains(err.Error(), postgres.BinVariable+"=/no/such/directory") {
		t.Errorf("the error is %v", err)
	}
}

func TestProgramsThatDoNotRunArePassedOver(t *testing.T) {
	if machine, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb"); len(machine) == 0 {
		t.Skip("needs a Postgres in /usr/lib/postgresql to fall back to")
	}
	for name, script := range map[string]string{
		"broken":  "#!/bin/sh\necho cannot load a library >&2; exit 127\n",
		"too old": "#!/bin/sh\necho 'initdb (PostgreSQL) 9.6.24'\n",
		"other":   "#!/bin/sh\necho hello\n",
	} {
		t.Run(name, func(t *testing.T) {
			dir := openDir(t)
			for _, program := range []string{"initdb", "postgres"} {
				if err := os.WriteFile(filepath.Join(dir, program), []byte(script), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("PATH", dir)
			bin, err := postgres.Find(t.Context())
			if err != nil || !strings.HasPrefix(bin, "/usr/lib/postgresql/") {
				t.Errorf("found %s, %v", bin, err)
			}
			t.Setenv(postgres.BinVariable, dir)
			if _, err := postgres.Find(t.Context()); err == nil {
				t.Error("accepted where it is named")
			}
		})
	}
}

func onlyLinux(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("there are downloads for Linux only")
	}
}

// repository serves what a handler answers as the Maven repository.
func repository(t *testing.T, handler http.Handler) (address string) {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	t.Setenv(postgres.MavenVariable, server.URL)
	return server.URL
}

// fake is a build of Postgres that can tell its version and nothing else.
func fake() []tar.Header {
	return []tar.Header{
		{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "bin/initdb", Typeflag: tar.TypeReg, Mode: 0o755},
		{Name: "bin/postgres", Typeflag: tar.TypeReg, Mode: 0o755},
		{Name: "lib/file", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "lib/link", Typeflag: tar.TypeSymlink, Linkname: "../lib/file"},
	}
}

// jar packs entries as the real jar is packed. A program is one that tells a
// version.
func jar(t *testing.T, entries []tar.Header) []byte {
	t.Helper()
	var packed bytes.Buffer
	archive := zip.NewWriter(&packed)
	file, err := archive.Create("postgres-linux.txz")
	check(t, err)
	compressor, err := xz.NewWriter(file)
	check(t, err)
	files := tar.NewWriter(compressor)
	for _, header := range entries {
		content := ""
		if header.Typeflag == tar.TypeReg {
			content = "text"
		}
		if strings.HasPrefix(header.Name, "bin/") && header.Typeflag == tar.TypeReg {
			content = "#!/bin/sh\necho 'fake (PostgreSQL) 18.6'\n"
		}
		header.Size = int64(len(content))
		check(t, files.WriteHeader(&header))
		_, err = io.WriteString(files, content)
		check(t, err)
	}
	check(t, files.Close())
	check(t, compressor.Close())
	check(t, archive.Close())
	return packed.Bytes()
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func sum(content []byte) string {
	hash := sha256.Sum256(content)
	return hex.EncodeToString(hash[:])
}
