package process

import (
	"os"
	"strings"
)

// LogTail returns the end of a log file in a form that can be added to an error,
// or "" if there is none.
func LogTail(file string) string {
	const most = 2000 // bytes
	text, err := os.ReadFile(file)
	if err != nil || len(text) == 0 {
		return ""
	}
	if len(text) > most {
		text = append([]byte("..."), text[len(text)-most:]...)
	}
	return "; its log says:\n" + strings.TrimSpace(string(text))
}
