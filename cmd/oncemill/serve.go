package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"
)

// checkAddress checks the flag --http.
func checkAddress(addr string) error {
	if addr == "" {
		return nil
	}
	return checkAddressOf("--http", addr)
}

func checkAddressOf(flag, addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if n, errPort := strconv.Atoi(port); err != nil || errPort != nil || n < 0 || n > 65535 {
		return usagef("invalid value %q for flag %s: want host:port, such as 127.0.0.1:8080", addr, flag)
	}
	return nil
}

// serve runs work, with probes served meanwhile unless addr is "".
func serve(ctx context.Context, name, addr string, ready func() error, logger *slog.Logger, work func(context.Context) error) error {
	if addr == "" {
		logger.Info(name + " starts")
		defer logger.Info(name + " has stopped")
		defer tellSystemd(ctx, logger)()
		return work(ctx)
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("--http: %w (choose an address that is free on this machine)", err)
	}
	server := &http.Server{Handler: probeHandler(ready), ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	logger.Info(name+" starts", "http", listener.Addr().String())
	defer logger.Info(name + " has stopped")
	defer tellSystemd(ctx, logger)()
	err = work(ctx)
	server.Close()
	if errServe := <-served; !errors.Is(errServe, http.ErrServerClosed) {
		err = errors.Join(err, fmt.Errorf("--http: %w", errServe))
	}
	return err
}

// probeHandler answers /livez and /readyz.
func probeHandler(ready func() error) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "ok\n")
	})
	return mux
}
