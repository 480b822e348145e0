package process

import "golang.org/x/sys/unix"

// memory is where Linux has a file system in memory.
const memory = "/dev/shm"

// TemporaryParent returns where a server's temporary directory is made: in memory
// if its files may be lost with the machine and there is room, else "", which is
// the system's own place. In a container memory is often too small.
func TemporaryParent(volatile bool) string {
	const room = 2 << 30
	var fs unix.Statfs_t
	if !volatile || unix.Statfs(memory, &fs) != nil || uint64(fs.Bavail)*uint64(fs.Bsize) < room {
		return ""
	}
	return memory
}
