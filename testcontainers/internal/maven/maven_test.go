package maven_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/oncemill/oncemill/testcontainers/internal/maven"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var file = maven.File{Path: "org/x/1/x-1.jar", SHA256: fmt.Sprintf("%x", sha256.Sum256([]byte("content")))}

func TestADownloadIsTriedAgain(t *testing.T) {
	requests := 0
	repository(t, func(w http.ResponseWriter, r *http.Request) {
		if requests++; requests < 3 {
			http.Error(w, "try later", http.StatusBadGateway)
			return
		}
		if r.URL.Path != "/org/x/1/x-1.jar" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		fmt.Fprint(w, "content")
	})
	var progress strings.Builder
	fetcher := &maven.Fetcher{Name: "x", Progress: &progress}
	target := filepath.Join(t.TempDir(), "x")
	if err := fetcher.Get(t.Context(), file, target); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(target); err != nil || string(text) != "content" {
		t.Errorf("the file has %q, %v", text, err)
	}
	if n := strings.Count(progress.String(), "x: "); n != 2 || !strings.Contains(progress.String(), "502") {
		t.Errorf("it said %q", progress.String())
	}
}

func TestAnAnswerThatWouldBeTheSameIsAskedForOnce(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"another file": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "other") },
		"none":         http.NotFound,
	} {
		t.Run(name, func(t *testing.T) {
			requests := 0
			address := repository(t, func(w http.ResponseWriter, r *http.Request) {
				requests++
				answer(w, r)
			})
			fetcher := &maven.Fetcher{Name: "x", Progress: t.Output()}
			err := fetcher.Get(t.Context(), file, filepath.Join(t.TempDir(), "x"))
			if err == nil || !strings.Contains(err.Error(), address) || requests != 1 {
				t.Errorf("after %d requests the error is %v", requests, err)
			}
			if wrong := name == "another file"; errors.Is(err, maven.ErrChecksum) != wrong {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

func TestADownloadCanBeGivenUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	repository(t, http.NotFound)
	fetcher := &maven.Fetcher{Name: "x", Progress: t.Output()}
	cancel()
	if err := fetcher.Get(ctx, file, filepath.Join(t.TempDir(), "x")); !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
}

// repository serves what a handler answers as the Maven repository.
func repository(t *testing.T, handler http.HandlerFunc) (address string) {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	t.Setenv(maven.Variable, server.URL+"/")
	return server.URL
}
