package crew

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// settingVariable holds a child's setting, as JSON. It is not an argument because
// everybody may read those, and Postgres's URL has a password.
const settingVariable = "ONCEMILL_DEMO_SETTING"

// Say says a line to the conductor.
func Say(what string) { fmt.Println(what) }

// KillMe is what a process says at the worst moment for it to be killed.
const KillMe = "kill me"

// AwaitKill is the end of a process. It does nothing more, and the conductor sends
// SIGKILL.
func AwaitKill() {
	Say(KillMe)
	select {}
}

// Main is a demo's main function. A role is what a process does: until ctx ends, or
// until it is done. conduct is the conductor's, with the arguments of the user.
func Main[S any](roles map[string]func(ctx context.Context, setting S) error, conduct func(ctx context.Context, args []string) error) (exitCode int) {
	// However often they come, everything is cleared away, which takes a second.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if len(os.Args) == 2 && roles[os.Args[1]] != nil {
		if err := play(ctx, roles[os.Args[1]]); err != nil {
			slog.Error("ended", "error", err)
			return 1
		}
		return 0
	}
	// Without this, a reader that goes away, as in `make demo | head`, would end this
	// process before it can clear away. Now the screen has an error.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	name := filepath.Base(os.Args[0])
	switch err := conduct(ctx, os.Args[1:]); {
	case ctx.Err() != nil:
		fmt.Fprintf(os.Stderr, "%s: interrupted, everything is stopped\n", name)
		return 130
	case err != nil:
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 1
	}
	return 0
}

// play plays one role. The conductor holds standard input open: when it ends, so
// has the conductor, however that happened.
func play[S any](ctx context.Context, do func(ctx context.Context, setting S) error) error {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	var setting S
	if err := json.Unmarshal([]byte(os.Getenv(settingVariable)), &setting); err != nil {
		return fmt.Errorf("%s: %w (this is for the conductor to start)", settingVariable, err)
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	return do(ctx, setting)
}
