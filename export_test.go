package oncemill

// For tests of what cannot be seen from the outside.
var (
	ControlsTransaction = controlsTransaction
	StoredKey           = storedKey
)
