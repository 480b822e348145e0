package kafka

import (
	"errors"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A watch logs what goes wrong in a session when it begins and when it is over,
// and not all the time in between. It is a hook of the client, which else
// connects again without a word.
type watch struct {
	log   *slog.Logger
	topic string

	mu          sync.Mutex
	away        map[string]bool // brokers, by address, that cannot be connected to
	fetching    error           // why nothing can be fetched
	uncommitted error           // why nothing can be committed
}

var _ kgo.HookBrokerConnect = (*watch)(nil)

// OnBrokerConnect is called by the client.
func (w *watch) OnBrokerConnect(meta kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	address := net.JoinHostPort(meta.Host, strconv.Itoa(int(meta.Port)))
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.away[address]
	switch {
	case err != nil && !was:
		if w.away == nil {
			w.away = make(map[string]bool)
		}
		w.away[address] = true
		w.log.Warn("oncemill: kafka: cannot connect to a broker, trying until it works", "topic", w.topic, "broker", address, "error", explained(err))
	case err == nil && len(w.away) > 0:
		// One that was dialled by another name at first may never be again, so
		// they are all forgotten; one that is still away will be noticed again.
		clear(w.away)
		w.log.Info("oncemill: kafka: connected to a broker", "topic", w.topic, "broker", address)
	}
}

// failed takes note of an error in the place of records.
func (w *watch) failed(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fetching == nil || w.fetching.Error() != err.Error() {
		w.log.Warn("oncemill: kafka: cannot fetch messages, trying again until it works", "topic", w.topic, "error", err)
	}
	w.fetching = err
}

// works takes note of records.
func (w *watch) works() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fetching != nil {
		w.log.Info("oncemill: kafka: fetching messages again", "topic", w.topic)
	}
	w.fetching = nil
}

// committed takes note of a commit and how it ended. What belongs to the group's
// coming and going is not worth a line.
func (w *watch) committed(err error) {
	for _, usual := range []error{errNotOwned, errEvicted, kerr.RebalanceInProgress, kerr.IllegalGeneration, kerr.UnknownMemberID, kerr.UnknownTopicID} {
		if errors.Is(err, usual) {
			return
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err != nil && w.uncommitted == nil:
		w.log.Warn("oncemill: kafka: cannot commit offsets, trying again until it works; what is not committed may be delivered again",
			"topic", w.topic, "error", explained(err))
	case err == nil && w.uncommitted != nil:
		w.log.Info("oncemill: kafka: committing offsets again", "topic", w.topic)
	}
	w.uncommitted = err
}
