package email

import (
	"errors"
	"net"
	"sync/atomic"
)

// mostReplies is how many bytes a server may send while it takes one mail, with its
// certificates. Nothing else bounds the length of a reply.
const mostReplies = 1 << 20

var errTooMuch = errors.New("the server sends more than any reply has")

// A wire is the connection under TLS. It knows how many bytes have left.
type wire struct {
	net.Conn
	written atomic.Int64 // handed to the kernel
	unread  atomic.Int64 // how many more may come
}

func (w *wire) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	w.written.Add(int64(n))
	return n, err
}

func (w *wire) Read(p []byte) (int, error) {
	left := w.unread.Load()
	if left <= 0 {
		return 0, errTooMuch
	}
	n, err := w.Conn.Read(p[:min(int64(len(p)), left)])
	w.unread.Add(-int64(n))
	return n, err
}
