//go:build race

package guard_test

// What a guard is built with, and its whole environment.
var (
	raceFlags       = []string{"-race"}
	raceEnvironment = []string{"GORACE=halt_on_error=0"}
)
