package main

import (
	"io"
	"log/slog"
)

// logOptions are the flags of the log.
type logOptions struct{ level, format *string }

func (f *flags) log() logOptions {
	return logOptions{
		level:  f.choice("log-level", "the least level that is logged", "info", "debug", "warn", "error"),
		format: f.choice("log-format", "how the log is written to standard error", "text", "json"),
	}
}

func (o logOptions) logger(w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(*o.level)); err != nil {
		panic("log level " + *o.level + " passed the flag's check")
	}
	options := &slog.HandlerOptions{Level: level}
	if *o.format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
