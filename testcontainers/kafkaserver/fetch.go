package kafkaserver

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/oncemill/oncemill/testcontainers/internal/cache"
	"github.com/oncemill/oncemill/testcontainers/internal/maven"
)

// Version is the version of Kafka.
const Version = "4.4.0"

// The environment variables that change where Kafka comes from.
const (
	// CacheVariable names the directory that the download is kept in. Where it
	// is not set that is the directory oncemill in the user's cache directory;
	// for root it is /var/cache/oncemill.
	CacheVariable = cache.Variable
	// MavenVariable is the base URL of the Maven repository to download from,
	// in place of Maven Central.
	MavenVariable = maven.Variable
)

// ErrChecksum is returned for a download that is not the file that was expected.
// Nothing of it has been kept.
var ErrChecksum = maven.ErrChecksum

// jarList names what is downloaded.
//
//go:embed jars.txt
var jarList string

// jarBytes is the size of all jars.
const jarBytes = 44_581_600

// parallel is how many jars are downloaded at a time.
const parallel = 4

// Fetch downloads Kafka's jars into the cache, unless they are there, and returns
// their directory. It writes to progress what it does.
func Fetch(ctx context.Context, progress io.Writer) (jars string, err error) {
	jars, unlock, err := cache.Prepare("kafka-" + Version)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(jars); err == nil {
		return jars, nil
	}
	err = install(ctx, jars, progress)
	switch {
	case errors.Is(err, ErrChecksum):
		return "", fmt.Errorf("fetch Kafka %s: %w; nothing was kept", Version, err)
	case err != nil:
		return "", fmt.Errorf("fetch Kafka %s: %w; set %s to another Maven repository", Version, err, MavenVariable)
	}
	return jars, nil
}

// install downloads and checks the jars. The target appears complete or not at
// all.
func install(ctx context.Context, target string, progress io.Writer) error {
	files := list()
	fmt.Fprintf(progress, "kafka: fetching %d jars, such as %s (%d MB, once, into %s)\n",
		len(files), files[0].Address(), (jarBytes+500_000)/1_000_000, target)
	work, err := os.MkdirTemp(filepath.Dir(target), ".fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	jars := filepath.Join(work, "jars")
	if err := cache.MakeOpenDir(jars); err != nil {
		return err
	}
	fetcher := &maven.Fetcher{Name: "kafka", Bytes: jarBytes, Progress: progress}
	if err := getAll(ctx, fetcher, files, jars); err != nil {
		return err
	}
	return os.Rename(jars, target)
}

// list returns the jars.
func list() []maven.File {
	var files []maven.File
	for line := range strings.Lines(jarList) {
		if fields := strings.Fields(line); !strings.HasPrefix(line, "#") {
			files = append(files, maven.File{Path: fields[0], SHA256: fields[1]})
		}
	}
	return files
}

// getAll downloads files into a directory, a few at a time, and gives up with the
// first that fails.
func getAll(ctx context.Context, fetcher *maven.Fetcher, files []maven.File, dir string) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	queue := make(chan maven.File, len(files))
	for _, file := range files {
		queue <- file
	}
	close(queue)
	results := make(chan error, parallel)
	for range parallel {
		go func() { results <- getSome(ctx, fetcher, queue, dir) }()
	}
	for range parallel {
		if e := <-results; e != nil && err == nil {
			err = e // those that come later were only cancelled
			cancel()
		}
	}
	return err
}

// getSome downloads files until there are no more.
func getSome(ctx context.Context, fetcher *maven.Fetcher, queue <-chan maven.File, dir string) error {
	for file := range queue {
		if err := fetcher.Get(ctx, file, filepath.Join(dir, path.Base(file.Path))); err != nil {
			return err
		}
	}
	return nil
}
