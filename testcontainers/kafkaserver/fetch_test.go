package kafkaserver_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/oncemill/oncemill/testcontainers/kafkaserver"
)

// The tests in this file set environment variables and run one after the other.

// downloadVariable allows the test that downloads the real thing.
const downloadVariable = "ONCEMILL_TEST_DOWNLOAD"

func TestTheRealDownloadRuns(t *testing.T) {
	java := needJava(t)
	if os.Getenv(downloadVariable) != "1" {
		t.Skipf("downloads 45 MB: set %s=1", downloadVariable)
	}
	t.Setenv(kafkaserver.CacheVariable, t.TempDir())
	server, err := kafkaserver.Start(t.Context(), kafkaserver.Options{Java: java, Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
}

func TestADownloadWithAWrongChecksumIsRefused(t *testing.T) {
	repository(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/b.jar") {
			fmt.Fprint(w, "something else")
			return
		}
		fmt.Fprint(w, r.URL.Path)
	})
	defer kafkaserver.PinJars(pins("a/a.jar", "b/b.jar", "c/c.jar"))()
	cache := t.TempDir()
	t.Setenv(kafkaserver.CacheVariable, cache)
	_, err := kafkaserver.Fetch(t.Context(), t.Output())
	if !errors.Is(err, kafkaserver.ErrChecksum) || !strings.Contains(err.Error(), "b/b.jar has SHA-256") ||
		!strings.Contains(err.Error(), "nothing was kept") {
		t.Fatalf("the error is %v", err)
	}
	left, _ := filepath.Glob(filepath.Join(cache, "kafka-*", "*"))
	work, _ := filepath.Glob(filepath.Join(cache, ".fetch-*"))
	if left = append(left, work...); len(left) > 0 {
		t.Errorf("%v was left behind", left)
	}
}

func TestTheJarsAreDownloadedOnce(t *testing.T) {
	var requests atomic.Int32
	repository(t, func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) == 1 {
			http.Error(w, "try later", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, r.URL.Path)
	})
	var paths []string
	for i := range 10 {
		paths = append(paths, fmt.Sprintf("%d/%d.jar", i, i))
	}
	defer kafkaserver.PinJars("# a comment\n" + pins(paths...))()
	t.Setenv(kafkaserver.CacheVariable, t.TempDir())
	type result struct {
		jars string
		err  error
	}
	results := make(chan result, 3)
	for range cap(results) {
		go func() {
			jars, err := kafkaserver.Fetch(t.Context(), t.Output())
			results <- result{jars, err}
		}()
	}
	for range cap(results) {
		r := <-results
		if r.err != nil {
			t.Fatal(r.err)
		}
		if files, _ := filepath.Glob(filepath.Join(r.jars, "*.jar")); len(files) != len(paths) {
			t.Errorf("there are %v", files)
		}
	}
	if n := requests.Load(); n != 11 { // one failed
		t.Errorf("there were %d requests", n)
	}
}

func TestAnUnreachableRepositoryIsNamed(t *testing.T) {
	address := repository(t, http.NotFound)
	t.Setenv(kafkaserver.CacheVariable, t.TempDir())
	_, err := kafkaserver.Fetch(t.Context(), t.Output())
	for _, want := range []string{address, "404", kafkaserver.MavenVariable} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not mention %s: %v", want, err)
		}
	}
}

// repository serves what a handler answers as the Maven repository.
func repository(t *testing.T, handler http.HandlerFunc) (address string) {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	t.Setenv(kafkaserver.MavenVariable, server.URL)
	return server.URL
}

// pins lists files whose content is their path in the URL.
func pins(paths ...string) string {
	var list strings.Builder
	for _, path := range paths {
		fmt.Fprintf(&list, "%s %x\n", path, sha256.Sum256([]byte("/"+path)))
	}
	return list.String()
}
