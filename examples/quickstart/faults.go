package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/consumers/jetstream"
)

// Of every faultEvery orders one meets with each kind of fault, at its first
// delivery.
const faultEvery = 50

// What a worker tells the conductor, on standard output, one word a line.
const (
	saidError  = "error"
	saidPanic  = "panic"
	saidNoAck  = "lost-ack"
	saidToKill = "relay-killed-itself"
)

func say(what string) { fmt.Println(what) }

// misbehave is what goes wrong in the handler, after it has written.
func misbehave(msg *message.Message) error {
	d, _ := jetstream.FromContext(msg.Context())
	number, _ := strconv.Atoi(order(msg))
	if d.Attempt != 1 {
		return nil
	}
	switch number % faultEvery {
	case 10:
		say(saidError)
		return errors.New("the handler fails, on purpose")
	case 20:
		say(saidPanic)
		panic("the handler panics, on purpose")
	}
	return nil
}

func losingNothing(conn net.Conn) net.Conn { return conn }

// losingAcks returns a connection that loses some acknowledgements on the way to
// the broker, which delivers those messages again.
func losingAcks(conn net.Conn) net.Conn { return &lossy{Conn: conn, lost: make(map[int]bool)} }

type lossy struct {
	net.Conn
	lost map[int]bool // by the message's number in the stream
}

// Write drops the acknowledgement of some first deliveries. nats.go writes whole
// protocol messages, several at a time.
func (l *lossy) Write(data []byte) (int, error) {
	kept := make([]byte, 0, len(data))
	for rest := data; len(rest) > 0; {
		message, after, ok := nextPub(rest)
		if !ok {
			kept = append(kept, rest...)
			break
		}
		if l.loses(message) {
			say(saidNoAck)
		} else {
			kept = append(kept, message...)
		}
		rest = after
	}
	if _, err := l.Conn.Write(kept); err != nil {
		return 0, err
	}
	return len(data), nil
}

// nextPub splits the protocol's next message off: one line, and for a PUB its
// payload.
func nextPub(data []byte) (message, rest []byte, ok bool) {
	end := bytes.Index(data, []byte("\r\n"))
	if end < 0 {
		return nil, nil, false
	}
	end += 2
	words := strings.Fields(string(data[:end]))
	if len(words) > 0 && (words[0] == "PUB" || words[0] == "HPUB") {
		size, err := strconv.Atoi(words[len(words)-1])
		if err != nil || end+size+2 > len(data) {
			return nil, nil, false
		}
		end += size + 2
	}
	return data[:end], data[end:], true
}

// loses picks the first acknowledgement of some messages, by their number in the
// stream. Its subject is
// $JS.ACK.[domain.account.]stream.consumer.delivered.stream_sequence.…
func (l *lossy) loses(message []byte) bool {
	if !bytes.HasSuffix(message, []byte("\r\n+ACK\r\n")) {
		return false
	}
	tokens := strings.Split(strings.Fields(string(message))[1], ".")
	at := 4
	if len(tokens) > 9 {
		at = 6
	}
	if len(tokens) < at+2 {
		return false
	}
	sequence, err := strconv.Atoi(tokens[at+1])
	if err != nil || tokens[at] != "1" || sequence%faultEvery != 30 || l.lost[sequence] {
		return false
	}
	l.lost[sequence] = true
	return true
}

// killMyself ends this process as kill -9 does.
func killMyself() {
	say(saidToKill)
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Kill()
	}
	if err != nil {
		panic(err)
	}
	select {}
}
