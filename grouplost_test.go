package oncemill_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
)

// losing stands between a pool and Postgres, and loses requests or their answers.
type losing struct {
	t      *testing.T
	server string
	url    string

	mu       sync.Mutex
	listener net.Listener
	marker   []byte
	how      string
	left     int    // how many of what has the marker
	then     func() // called when one is lost, before the client knows
	clients  map[net.Conn]bool
	over     bool // the test
	wg       sync.WaitGroup
}

// losing returns a proxy. Its URL is that of the database, through it.
func (f *fixture) losing() *losing {
	f.t.Helper()
	u, err := url.Parse(f.url)
	must(f.t, err)
	l := &losing{t: f.t, server: u.Host, clients: map[net.Conn]bool{}}
	u.Host = l.listen("127.0.0.1:0")
	l.url = u.String()
	f.t.Cleanup(func() {
		l.away()
		l.mu.Lock()
		l.over = true
		l.mu.Unlock()
		l.wg.Wait()
	})
	return l
}

func (l *losing) listen(address string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return ""
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		l.t.Error(err)
		return ""
	}
	l.listener = listener
	l.wg.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", l.server)
			if err != nil {
				client.Close()
				continue
			}
			l.mu.Lock()
			l.clients[client] = true
			l.mu.Unlock()
			l.serve(client, server)
		}
	})
	return listener.Addr().String()
}

// away refuses connections from now on, and breaks those that there are.
func (l *losing) away() (address string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.listener.Close()
	for client := range l.clients {
		client.Close()
	}
	return l.listener.Addr().String()
}

// awayFor is away, and back later.
func (l *losing) awayFor(d time.Duration) {
	address := l.away()
	l.wg.Go(func() {
		time.Sleep(d)
		l.listen(address)
	})
}

// lose loses the next requests with the marker: "before" they reach the server, their
// answers "after" it has given them, or breaks the connection "during" its work; or
// swallows their answers and says "nothing".
func (l *losing) lose(marker, how string, times int, then func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.marker, l.how, l.left, l.then = bytes.ToUpper([]byte(marker)), how, times, then
}

func (l *losing) loses(request []byte) (how string, then func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left == 0 || !bytes.Contains(bytes.ToUpper(request), l.marker) {
		return "", nil
	}
	l.left--
	if l.then == nil {
		return l.how, func() {}
	}
	return l.how, l.then
}

func (l *losing) serve(client, server net.Conn) {
	var lost atomic.Pointer[func()] // what to do when the answer is lost
	var silent atomic.Bool
	l.wg.Go(func() { // answers
		defer client.Close()
		defer server.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := server.Read(buf)
			if then := lost.Load(); then != nil {
				(*then)()
				return
			}
			if err != nil {
				return
			}
			if silent.Load() {
				continue
			}
			if _, err := client.Write(buf[:n]); err != nil {
				return
			}
		}
	})
	l.wg.Go(func() { // requests
		buf := make([]byte, 256<<10)
		for {
			n, err := client.Read(buf)
			if err != nil {
				if lost.Load() == nil {
					server.Close()
				}
				return
			}
			switch how, then := l.loses(buf[:n]); how {
			case "before":
				then()
				client.Close()
				server.Close()
				return
			case "after":
				lost.Store(&then)
			case "during":
				nothing := func() {}
				lost.Store(&nothing)
				_, _ = server.Write(buf[:n])
				then()
				client.Close()
				return
			case "nothing":
				silent.Store(true)
				then()
			}
			if _, err := server.Write(buf[:n]); err != nil {
				return
			}
		}
	})
}

// wantHeld checks that the claim is the only one, and the holder of its key.
func (f *fixture) wantHeld(c *oncemill.Claim) {
	f.t.Helper()
	if n := f.count(`SELECT count(*) FROM oncemill.claims WHERE key = $1 AND token = $2 AND attempts = 1 AND settled_at IS NULL AND in_doubt_since IS NULL`, c.Key(), c.Token()); n != 1 {
		f.t.Errorf("the claim of %s with token %d is not there", c.Key(), c.Token())
	}
	if n := f.count(`SELECT count(*) FROM oncemill.events WHERE key = $1 AND kind = 'claimed' AND token >= $2`, c.Key(), c.Token()); n != 1 {
		f.t.Errorf("%s was claimed %d times", c.Key(), n)
	}
}

// wantFree waits for a key to be free, for as long as Claim may take to give it back.
func (f *fixture) wantFree(key string) {
	f.t.Helper()
	for deadline := time.Now().Add(8 * time.Second); f.count(`SELECT count(*) FROM oncemill.claims WHERE key = $1`, key) > 0; {
		if time.Now().After(deadline) {
			f.t.Fatalf("nobody holds %s, but it is taken and will be in doubt", key)
		}
	}
}

func TestTheAnswerToASharedClaimIsLost(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"postgres", "pgx"} {
		for _, how := range []string{"before", "after", "during"} {
			for _, away := range []time.Duration{0, time.Second} {
				t.Run(fmt.Sprintf("%s %s %v", driver, how, away), func(t *testing.T) {
					t.Parallel()
					f := newFixture(t)
					l := f.losing()
					in := &oncemill.Inbox{DB: f.open(driver, l.url), ClaimBatch: 64, LockWait: 500 * time.Millisecond}
					c := in.Consumer("test")
					claim(t, c, "warm", oncemill.ClaimOptions{})
					if how == "during" {
						f.slowCommit() // for longer than LockWait
					}
					then := func() {}
					if away > 0 {
						then = func() { l.awayFor(away) }
					}
					l.lose(`"lost"`, how, 1, then)
					got, err := c.Claim(within(t), "lost", oncemill.ClaimOptions{})
					must(t, err)
					f.wantHeld(got)
					refused(t, f.consumer(), "lost", oncemill.ClaimOptions{}, oncemill.ErrInFlight)
					must(t, got.Settle(within(t), nil, nil))
					in.DB.Close()
				})
			}
		}
	}
}

func TestTheAnswerToASharedSettlementIsLost(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"postgres", "pgx"} {
		for _, how := range []string{"before", "after", "during"} {
			t.Run(driver+" "+how, func(t *testing.T) {
				t.Parallel()
				f := newFixture(t)
				l := f.losing()
				in := &oncemill.Inbox{DB: f.open(driver, l.url), ClaimBatch: 64, LockWait: 500 * time.Millisecond}
				c := in.Consumer("test")
				got := claim(t, c, "lost", oncemill.ClaimOptions{})
				if how == "during" {
					f.exec(`CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$`)
					f.exec(`CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON oncemill.claims DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()`)
				}
				l.lose(`"lost"`, how, 1, nil)
				must(t, got.Settle(within(t), []byte("r"), nil))
				f.wantEvents("lost", oncemill.EventClaimed, oncemill.EventSettled)
				if held := refused(t, c, "lost", oncemill.ClaimOptions{}, oncemill.ErrSettled); string(held.Result) != "r" {
					t.Errorf("got %+v", held)
				}
				in.DB.Close()
			})
		}
	}
}

// Many callers, several processes, and connections that break at each request.
func TestLostAnswersOfSharedStatementsMakeNoSecondHolder(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	l := f.losing()
	ledger := &ledger{t: t, holders: map[string]int64{}, tokens: map[int64]bool{}}
	var processes []*oncemill.Consumer
	for _, driver := range []string{"postgres", "pgx"} {
		in := &oncemill.Inbox{DB: f.open(driver, l.url), ClaimBatch: 8}
		in.DB.SetMaxOpenConns(6)
		in.DB.SetMaxIdleConns(6)
		processes = append(processes, in.Consumer("test"))
		claim(t, in.Consumer("test"), driver, oncemill.ClaimOptions{})
	}
	l.lose(`"key `, "after", 20, func() { l.lose(`"key `, "before", 20, func() { l.lose(`"key `, "during", 10, nil) }) })
	var claimed, failed atomic.Int32
	together(48, func(i int) {
		for n := range 6 {
			c, err := processes[i%2].Claim(within(t), fmt.Sprint("key ", (i+n)%12), oncemill.ClaimOptions{Patient: true})
			switch {
			case errors.Is(err, oncemill.ErrInFlight):
				continue
			case err != nil:
				failed.Add(1)
				continue
			}
			claimed.Add(1)
			ledger.begin(c)
			ledger.end(c, 0)
			if err := c.Release(within(t), ""); err != nil && !errors.Is(err, oncemill.ErrUnavailable) {
				t.Error(err)
			}
		}
	})
	t.Logf("%d claims, %d failed", claimed.Load(), failed.Load())
	if claimed.Load() < 12 {
		t.Error("this test has tested nothing")
	}
	for _, c := range processes {
		c.Inbox().DB.Close()
	}
}

// The caller has gone when it turns out that the key was claimed.
func TestASharedClaimWhoseCallerGaveUpIsReleased(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"postgres", "pgx"} {
		for _, how := range []string{"nothing", "during"} {
			t.Run(driver+" "+how, func(t *testing.T) {
				t.Parallel()
				f := newFixture(t)
				l := f.losing()
				in := sharing(f.open(driver, l.url))
				c := in.Consumer("test")
				must(t, claim(t, c, "warm", oncemill.ClaimOptions{}).Release(within(t), ""))
				f.exec(`DELETE FROM oncemill.events`)
				f.slowCommit()
				l.lose(`"k"`, how, 1, nil)
				ctx, cancel := context.WithTimeout(within(t), 300*time.Millisecond)
				defer cancel()
				start := time.Now()
				_, err := c.Claim(ctx, "k", oncemill.ClaimOptions{})
				if err == nil || time.Since(start) > 10*time.Second {
					t.Errorf("got %v after %v", err, time.Since(start))
				}
				f.wantReleased("no effect was begun and Claim has failed, but the key is taken and will be in doubt")
				in.DB.Close()
			})
		}
	}
}

// A server that is silent on one connection keeps those who wait for it, and for no
// longer than DrainTimeout.
func TestASilentServerDoesNotHoldUpOtherSharedStatements(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	l := f.losing()
	in := &oncemill.Inbox{DB: f.open("postgres", l.url), ClaimBatch: 64, DrainTimeout: 3 * time.Second}
	c := in.Consumer("test")
	claim(t, c, "warm", oncemill.ClaimOptions{})
	silent := make(chan struct{}, 2)
	l.lose(`"silent `, "nothing", 2, func() { silent <- struct{}{} })
	answered := make(chan error, 2)
	for i := range 2 { // one for each lane
		go func() {
			got, err := c.Claim(within(t), fmt.Sprint("silent ", i), oncemill.ClaimOptions{})
			if err == nil {
				f.wantHeld(got)
			}
			answered <- err
		}()
		<-silent
	}
	together(20, func(i int) {
		if _, err := c.Claim(within(t), fmt.Sprint("other ", i), oncemill.ClaimOptions{}); err != nil {
			t.Error(err)
		}
	})
	must(t, <-answered)
	must(t, <-answered)
	in.DB.Close()
}

// A claim that is found again, and whose COMMIT is lost then, is not of that COMMIT.
func TestASharedClaimThatIsLostTwiceIsReleased(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	l := f.losing()
	in := sharing(f.open("postgres", l.url))
	c := in.Consumer("test")
	claim(t, c, "warm", oncemill.ClaimOptions{Origin: time.Now()})
	l.lose(`"k"`, "after", 1, func() { l.lose("COMMIT\x00", "before", 1, nil) })
	got, err := c.Claim(within(t), "k", oncemill.ClaimOptions{})
	if err == nil {
		f.wantHeld(got)
	} else {
		f.wantFree("k")
	}
	in.DB.Close()
}

// Nobody but the caller could have it, however long ago it was.
func TestASharedClaimIsFoundAgainLongAfterwards(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	l := f.losing()
	in := sharing(f.open("postgres", l.url))
	c := in.Consumer("test")
	claim(t, c, "warm", oncemill.ClaimOptions{})
	l.lose(`"k"`, "after", 1, func() {
		f.exec(`UPDATE oncemill.claims SET claimed_at = claimed_at - interval '35 seconds' WHERE key = 'k'`)
	})
	f.wantHeld(claim(t, c, "k", oncemill.ClaimOptions{}))
	in.DB.Close()
}
