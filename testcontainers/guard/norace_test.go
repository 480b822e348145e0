//go:build !race

package guard_test

// What a guard is built with, and its whole environment.
var raceFlags, raceEnvironment = []string{}, []string{}
