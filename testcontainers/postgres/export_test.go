package postgres

import (
	"maps"
	"runtime"
)

// ArtifactPath is where the build for this machine lies in a Maven repository.
func ArtifactPath() string {
	return "/" + downloads[runtime.GOARCH].file().Path
}

// PinChecksum makes another file the one that is expected, until the returned
// function is called.
func PinChecksum(sha256 string) (restore func()) {
	before := maps.Clone(downloads)
	d := downloads[runtime.GOARCH]
	d.sha256 = sha256
	downloads[runtime.GOARCH] = d
	return func() { downloads = before }
}
