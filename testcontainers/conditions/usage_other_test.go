//go:build !linux

package conditions_test

import "testing"

func usageOf(testing.TB, int) (u usage, ok bool) { return usage{}, false }
