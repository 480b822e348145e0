package email_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/email"
)

// A breaking connection hands over so many bytes of the mail's end, and breaks.
type breaking struct {
	net.Conn
	most int
}

var errBroken = errors.New("broken pipe")

func (b *breaking) Write(p []byte) (int, error) {
	if string(p) != ".\r\n" {
		return b.Conn.Write(p)
	}
	n, err := b.Conn.Write(p[:b.most])
	if err == nil && n < len(p) {
		err = errBroken
	}
	return n, err
}

// answer talks SMTP up to the end of the data, and gives what it has read of the data
// when that ends or the connection does.
func answer(conn net.Conn, early string, last string) (data string) {
	defer conn.Close()
	io.WriteString(conn, "220 ready\r\n")
	lines := bufio.NewReader(conn)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return data
		}
		if !strings.HasPrefix(line, "DATA") {
			io.WriteString(conn, "250 ok\r\n")
			continue
		}
		io.WriteString(conn, "354 go ahead\r\n"+early)
		for !strings.HasSuffix(data, "\r\n.\r\n") {
			next, err := lines.ReadByte()
			if err != nil {
				return data
			}
			data += string(next)
		}
		io.WriteString(conn, last)
		return data
	}
}

func TestAMailIsInDoubtFromTheFirstByteOfItsEnd(t *testing.T) {
	t.Parallel()
	const mail = "Subject: test\r\n\r\n..\r\nbody\r\n"
	for name, c := range map[string]struct {
		most        int // of the end that leaves
		early, last string
		want        oncemill.Verdict
		says, takes string
	}{
		"nothing of it left":        {0, "", "", oncemill.NotHappened, "broken pipe", ""},
		"a byte of it left":         {1, "", "", oncemill.Unknown, "broken pipe", "."},
		"all of it left, no answer": {3, "", "", oncemill.Unknown, "may have taken the mail <1@example.com>", ".\r\n"},
		"half an answer":            {3, "", "25", oncemill.Unknown, "may have taken", ".\r\n"},
		"an answer of two lines":    {3, "", "250-queued\r\n250 as 7\r\n", oncemill.Happened, "", ".\r\n"},
		"refused before its end":    {3, "552 too large\r\n", "", oncemill.Never, "552 too large", ""},
		"accepted before its end":   {3, "250 ok\r\n", "", oncemill.NotHappened, "before its end", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			taken := make(chan string, 1)
			go func() {
				conn, err := listener.Accept()
				if err != nil {
					taken <- err.Error()
					return
				}
				taken <- answer(conn, c.early, c.last)
			}()
			raw, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			_, err = email.Transmit(ctx, &breaking{raw, c.most}, mail)
			if oncemill.VerdictOf(err) != c.want || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("the verdict is %q of %v, want %q", oncemill.VerdictOf(err), err, c.want)
			}
			// Nobody ends the data when the connection is given up: no QUIT, no RSET.
			if got := <-taken; got != strings.ReplaceAll(mail, "..", "...")+c.takes {
				t.Errorf("the server got %q", got)
			}
		})
	}
}
