package process

import (
	"os"
	"strings"
)

// LogTail returns the end of a log file in a form that can be added to an error,
// or "" if there is none.
func LogTail(file string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	return Tail(string(text))
}

// Tail returns the end of a log as LogTail does.
func Tail(log string) string {
	const most = 2000 // bytes
	if len(log) == 0 {
		return ""
	}
	if len(log) > most {
		log = "..." + log[len(log)-most:]
	}
	return "; its log says:\n" + strings.TrimSpace(log)
}
