package crew

import (
	"context"
	"net"
	"net/http"
)

// ServeHTTP serves on a free port of 127.0.0.1 until ctx ends, and says its URL.
func ServeHTTP(ctx context.Context, handler http.Handler) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler}
	go server.Serve(listener) // until Close
	Say("http://" + listener.Addr().String())
	<-ctx.Done()
	return server.Close()
}
