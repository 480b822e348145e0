package jetstream

import (
	"context"
	"log/slog"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/internal/delivery"
	"github.com/oncemill/oncemill/internal/durable"
)

// streamOf is what there is to warn of.
func streamOf(cfg natsjs.StreamConfig, cluster string) durable.Stream {
	return durable.Stream{
		Name: cfg.Name, Memory: cfg.Storage == natsjs.MemoryStorage, Replicas: cfg.Replicas, Clustered: cluster != "",
		Kept: cfg.MaxAge, Work: cfg.Retention == natsjs.WorkQueuePolicy,
	}
}

// warn says what can be lost with the stream, or happen again.
func (s *subscription) warn(ctx context.Context, info *natsjs.StreamInfo) {
	stream := streamOf(info.Config, s.conn.ConnectedClusterName())
	durable.Tell(ctx, s.log, append(stream.Copies(), stream.Horizon(durable.Claims{Kept: delivery.Kept(ctx)})...))
}

// warnTimeout is short: rows are locked meanwhile, and a server gives no answer to who may
// not ask.
const warnTimeout = time.Second

// lookOnce looks at streams that have just acknowledged for the first time since the Sink
// is there, and says what can be lost with them. It is not repeated if it fails.
func (s *Sink) lookOnce(ctx context.Context, names []string) {
	for _, name := range names {
		if _, known := s.known.LoadOrStore(name, nil); known {
			continue
		}
		set := settings{conn: s.Conn}
		if set.setAPI(s.APIPrefix) != nil {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, warnTimeout)
		stream, err := set.js.Stream(ctx, name)
		cancel()
		if err == nil {
			durable.Tell(ctx, s.logger(), streamOf(stream.CachedInfo().Config, s.Conn.ConnectedClusterName()).Copies())
		}
	}
}

func (s *Sink) logger() *slog.Logger {
	if s.Logger == nil {
		return slog.Default()
	}
	return s.Logger
}
