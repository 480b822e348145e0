package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/oncemill/oncemill/examples/internal/crew"
)

// An entry is what the provider has in its ledger of an effect.
type entry struct {
	Kind    string    `json:"kind"` // charges, mails or calls
	Order   string    `json:"order"`
	Key     string    `json:"key"`     // under which it was wanted: Claim.ProviderKey
	Receipt string    `json:"receipt"` // "": refused, which holds for good
	At      time.Time `json:"at"`
}

// A provider makes effects and writes them into its ledger before it answers. Charges
// are made once for each key, and can be asked for; mails and calls are made as often as
// somebody wants, and cannot. It is outside of Postgres, and the nemesis leaves it alone,
// but it loses replies by itself.
type provider struct {
	mu      sync.Mutex
	ledger  *os.File
	charges map[string]entry // by key
	draws   *rand.Rand
	made    int
}

func ledgerFile(dir string) string { return filepath.Join(dir, "provider.ledger") }

func provide(ctx context.Context, s setting) error {
	ledger, err := os.OpenFile(ledgerFile(s.Dir), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer ledger.Close()
	p := &provider{ledger: ledger, charges: make(map[string]entry), draws: s.draws()}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /{kind}", p.make)
	mux.HandleFunc("GET /charges", p.find)
	return crew.ServeHTTP(ctx, mux)
}

// refuses tells whether the provider will never make an effect: one in 50.
func refuses(order string) bool {
	h := fnv.New32a()
	_, _ = io.WriteString(h, order)
	return h.Sum32()%50 == 0
}

func (p *provider) make(w http.ResponseWriter, r *http.Request) {
	var wanted entry
	if err := json.NewDecoder(r.Body).Decode(&wanted); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	wanted.Kind = r.PathValue("kind")
	delay, fate := p.draw()
	time.Sleep(delay)
	if fate == 1 { // nothing was done, and the caller cannot know
		panic(http.ErrAbortHandler)
	}
	made, err := p.write(wanted)
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	case fate == 2: // the reply is lost
		panic(http.ErrAbortHandler)
	case made.Receipt == "":
		http.Error(w, "refused", http.StatusPaymentRequired)
	default:
		_ = json.NewEncoder(w).Encode(made) // or the reply is lost
	}
}

func (p *provider) draw() (delay time.Duration, fate int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	most := 40
	if p.draws.IntN(10) == 0 {
		most = 800
	}
	return time.Duration(p.draws.IntN(most)) * time.Millisecond, p.draws.IntN(100)
}

// write makes the effect.
func (p *provider) write(e entry) (entry, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if before, ok := p.charges[e.Key]; ok && e.Kind == charges {
		return before, nil
	}
	if e.At = time.Now(); !refuses(e.Order) {
		p.made++
		e.Receipt = fmt.Sprint("receipt-", p.made)
	}
	text, err := json.Marshal(e)
	if err == nil {
		_, err = p.ledger.Write(append(text, '\n'))
	}
	if err == nil && e.Kind == charges {
		p.charges[e.Key] = e
	}
	return e, err
}

func (p *provider) find(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	e, ok := p.charges[r.URL.Query().Get("key")]
	p.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	_ = json.NewEncoder(w).Encode(e)
}

// readLedger reads what the provider has made and refused.
func readLedger(dir string) (all []entry, err error) {
	return readLines(ledgerFile(dir), func(line []byte) (e entry, err error) {
		err = json.Unmarshal(line, &e)
		return e, err
	})
}

// readLines reads a file of lines; one that is not there has none.
func readLines[T any](file string, parse func(line []byte) (T, error)) (all []T, err error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); err == nil && lines.Scan(); {
		var one T
		if one, err = parse(lines.Bytes()); err == nil {
			all = append(all, one)
		}
	}
	return all, err
}

// errRefused says that the provider will never make the effect.
var errRefused = errors.New("refused")

// A caller asks the provider for effects.
type caller struct {
	address string
	http    http.Client
}

func newCaller(address string) *caller {
	return &caller{address, http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32}}}
}

// want has the provider make an effect. Any error but errRefused says nothing about it.
func (c *caller) want(ctx context.Context, kind, order, key string) (receipt string, err error) {
	text, err := json.Marshal(entry{Order: order, Key: key})
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.address+"/"+kind, bytes.NewReader(text))
	if err != nil {
		return "", err
	}
	req.GetBody = nil // a request is sent once
	return c.receipt(req)
}

// find asks what became of a charge. ok is false if the provider has not heard of it.
func (c *caller) find(ctx context.Context, key string) (receipt string, ok bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.address+"/charges?key="+key, nil)
	if err != nil {
		return "", false, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return "", false, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusNotFound:
		return "", false, nil
	case http.StatusOK:
		var e entry
		err := json.NewDecoder(resp.Body).Decode(&e)
		return e.Receipt, err == nil, err
	}
	return "", false, errors.New(resp.Status)
}

func (c *caller) receipt(req *http.Request) (string, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		var made entry
		err := json.NewDecoder(resp.Body).Decode(&made)
		return made.Receipt, err
	case http.StatusPaymentRequired:
		return "", errRefused
	}
	return "", errors.New(resp.Status)
}
