package process

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// FreePort returns a TCP port on 127.0.0.1 that nobody listens on. It lies below
// the ports that systems give to outgoing connections, so that a server that is
// killed finds its port still free when it is started again.
func FreePort() (int, error) {
	for range 100 {
		port := 15000 + rand.IntN(15000)
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return port, listener.Close()
		}
	}
	return 0, errors.New("found no free port on 127.0.0.1")
}
