package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// kafkaPatience bounds the first attempt to reach the brokers, and
	// askPatience those that follow every askInterval.
	kafkaPatience = 10 * time.Second
	askPatience   = 5 * time.Second
	askInterval   = time.Second
)

// A kafkaWatch knows whether the brokers are there. It asks them all the time,
// because the client itself says nothing, and notices nothing while there is
// nothing to publish.
type kafkaWatch struct {
	client  *kgo.Client
	brokers string // for people
	log     *slog.Logger

	cancel  context.CancelFunc
	running sync.WaitGroup

	mu    sync.Mutex
	away  error // why, nil while they are there
	since time.Time
}

// start returns nil once a broker has answered.
func (w *kafkaWatch) start(ctx context.Context) error {
	asking, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	stop := context.AfterFunc(ctx, cancel)
	defer stop()
	if err := w.ask(asking, kafkaPatience); err != nil {
		w.stop()
		return err
	}
	w.running.Go(func() { w.keepAsking(asking) })
	return nil
}

func (w *kafkaWatch) stop() {
	w.cancel()
	w.running.Wait()
}

func (w *kafkaWatch) keepAsking(ctx context.Context) {
	ticker := time.NewTicker(askInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		err := w.ask(ctx, askPatience)
		if ctx.Err() == nil {
			w.note(err)
		}
	}
}

// ask returns nil as soon as one broker answers. All are asked at once, or one
// that is silent would keep the others from being heard. Their answers are still
// waited for afterwards: a request that is given up costs its connection.
func (w *kafkaWatch) ask(ctx context.Context, patience time.Duration) (err error) {
	seeds := w.client.SeedBrokers()
	answers := make(chan error, len(seeds))
	for _, seed := range seeds {
		w.running.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			question := kmsg.NewPtrMetadataRequest()
			question.Topics = []kmsg.MetadataRequestTopic{}
			_, err := seed.Request(ctx, question)
			answers <- err
		})
	}
	for range seeds {
		answer := <-answers
		if answer == nil {
			return nil
		}
		if err == nil {
			err = answer // whoever answers first says most
		}
	}
	return w.explained(err, patience)
}

// note logs what has changed.
func (w *kafkaWatch) note(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err != nil && w.away == nil:
		w.since = time.Now()
		w.log.Warn("Kafka is away, waiting until it is back", "error", err)
	case err == nil && w.away != nil:
		w.log.Info("Kafka is back", "after", time.Since(w.since).Round(time.Millisecond))
	}
	w.away = err
}

func (w *kafkaWatch) ready() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.away
}

// explained says which flags have to do with an error.
func (w *kafkaWatch) explained(err error, patience time.Duration) error {
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %v", patience)
	}
	remedy := "check --kafka-brokers, that the brokers run, and whether they want --kafka-tls, a certificate in --kafka-tls-cert or --kafka-sasl"
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.Is(err, kerr.SaslAuthenticationFailed):
		remedy = "the brokers refuse the credentials: check --kafka-user, the password and --kafka-sasl"
	case errors.Is(err, kerr.UnsupportedSaslMechanism):
		remedy = "the brokers offer other mechanisms: choose another --kafka-sasl"
	case errors.Is(err, kerr.IllegalSaslState):
		remedy = "on this port nobody logs in: leave out --kafka-sasl, or give another port in --kafka-brokers"
	case errors.As(err, &certificate):
		remedy = "give the authority that has signed the brokers' certificate in --kafka-tls-ca, and the host that it names in --kafka-brokers"
	}
	return fmt.Errorf("cannot connect to Kafka at %s: %w (%s)", w.brokers, err, remedy)
}
