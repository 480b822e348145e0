package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
)

// tellSystemd tells systemd, or whoever else has set NOTIFY_SOCKET, that this program works,
// and when ctx ends that it is about to stop.
func tellSystemd(ctx context.Context, logger *slog.Logger) (forget func() bool) {
	notify("READY=1", logger)
	return context.AfterFunc(ctx, func() { notify("STOPPING=1", logger) })
}

// notify sends a state. That it cannot be sent is no reason not to work.
func notify(state string, logger *slog.Logger) {
	addr := os.Getenv("NOTIFY_SOCKET") // one that begins with @ is abstract, also for package net
	if addr == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: addr, Net: "unixgram"})
	if err == nil {
		defer conn.Close()
		_, err = io.WriteString(conn, state)
	}
	if err != nil {
		logger.Warn("NOTIFY_SOCKET cannot be told how this program is", "state", state, "error", err)
	}
}
