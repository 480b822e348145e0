package oncemill

import "github.com/oncemill/oncemill/internal/storedkey"

// maxKey is the length in bytes up to which a key, or a consumer's name, is stored as it
// is.
const maxKey = storedkey.Longest

// storedKey maps a key to the text that stands for it in the table.
func storedKey(key string) string { return storedkey.Of(key) }

// shownKey undoes storedKey, where that is possible.
func shownKey(stored string) string { return storedkey.Shown(stored) }
