package kafkaserver

// PinJars makes others the jars that are expected, a path and a checksum a line,
// until the returned function is called.
func PinJars(list string) (restore func()) {
	before := jarList
	jarList = list
	return func() { jarList = before }
}
