package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// A wire is a caller with a connection of its own, to either server. It knows no more of
// HTTP/1.1 than they speak, since it shares the machine with them, and net/http would
// take as much of it as they do.
type wire struct {
	conn net.Conn
	in   *bufio.Reader
	out  []byte // the request
	body []byte // the request's, then the response's
}

// replyLimit is how long a response may take.
const replyLimit = 30 * time.Second

func dialHTTP(ctx context.Context, addr string) (*wire, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &wire{conn: conn, in: bufio.NewReader(conn)}, nil
}

func (w *wire) close() error { return w.conn.Close() }

func (w *wire) claim(turn, id string) (token string, err error) {
	w.body = fmt.Appendf(w.body[:0], `{"request_id":%q,"action":%q}`, id, turn)
	if err := w.post("/claim", ""); err != nil {
		return "", err
	}
	if status := field(w.body, "status"); status != "PROCEED" {
		return "", fmt.Errorf("the answer is %.200q", w.body)
	}
	return field(w.body, "settlement_token"), nil
}

func (w *wire) settle(id, token string) error {
	w.body = fmt.Appendf(w.body[:0], `{"result":{"order":%q}}`, id)
	if err := w.post("/settle/"+id, token); err != nil {
		return err
	}
	if status := field(w.body, "status"); status != "committed" {
		return fmt.Errorf("the answer is %.200q", w.body)
	}
	return nil
}

// post sends w.body, and receives the response's.
func (w *wire) post(path, token string) error {
	w.out = fmt.Appendf(w.out[:0], "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n", path, len(w.body))
	if token != "" {
		w.out = fmt.Appendf(w.out, "X-SafeAgent-Settlement-Token: %s\r\n", token)
	}
	w.out = append(append(w.out, "\r\n"...), w.body...)
	if err := w.conn.SetDeadline(time.Now().Add(replyLimit)); err != nil {
		return err
	}
	if _, err := w.conn.Write(w.out); err != nil {
		return err
	}
	return w.receive()
}

// receive reads one response. Any but a 200 is an error.
func (w *wire) receive() error {
	line, err := w.line()
	if err != nil {
		return err
	}
	ok := bytes.HasPrefix(line, []byte("HTTP/1.1 200 "))
	status := string(line)
	length, chunked := 0, false
	for {
		if line, err = w.line(); err != nil {
			return err
		}
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch value = bytes.TrimSpace(value); {
		case bytes.EqualFold(name, []byte("Content-Length")):
			length, err = strconv.Atoi(string(value))
		case bytes.EqualFold(name, []byte("Transfer-Encoding")):
			chunked = true
		case bytes.EqualFold(name, []byte("Connection")) && bytes.EqualFold(value, []byte("close")):
			err = errors.New("the server does not keep the connection")
		}
		if err != nil {
			return err
		}
	}
	w.body = w.body[:0]
	if chunked {
		err = w.chunks()
	} else {
		err = w.append(length)
	}
	if err == nil && !ok {
		err = fmt.Errorf("%s: %.200s", status, w.body)
	}
	return err
}

// chunks reads a body that comes in chunks.
func (w *wire) chunks() error {
	for {
		line, err := w.line()
		if err != nil {
			return err
		}
		size, _, _ := bytes.Cut(line, []byte(";"))
		length, err := strconv.ParseUint(string(size), 16, 31)
		if err != nil {
			return err
		}
		if err := w.append(int(length)); err != nil {
			return err
		}
		if _, err := w.line(); err != nil || length == 0 { // there are no trailers
			return err
		}
	}
}

func (w *wire) append(length int) error {
	had := len(w.body)
	w.body = append(w.body, make([]byte, length)...)
	_, err := io.ReadFull(w.in, w.body[had:])
	return err
}

// line reads a line, without its end.
func (w *wire) line() ([]byte, error) {
	line, err := w.in.ReadSlice('\n')
	return bytes.TrimRight(line, "\r\n"), err
}

// field is the value of a field of a JSON object, if it is a string without escapes.
func field(object []byte, name string) string {
	_, rest, found := bytes.Cut(object, []byte(`"`+name+`":`))
	rest = bytes.TrimLeft(rest, " ")
	if !found || len(rest) == 0 || rest[0] != '"' {
		return ""
	}
	value, _, _ := bytes.Cut(rest[1:], []byte(`"`))
	return string(value)
}
