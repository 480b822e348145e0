package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"

	"github.com/oncemill/oncemill/examples/internal/crew"
)

// A provider makes charges, as often as somebody wants, and is outside of Postgres. Its
// ledger is a bit for each number, so that it does not grow itself.
type provider struct {
	mu          sync.Mutex
	made        []uint64
	once, again int
}

func provide(ctx context.Context, _ setting) error {
	p := new(provider)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /charges/{number}", p.charge)
	mux.HandleFunc("GET /charges/{number}", p.find)
	mux.HandleFunc("GET /ledger", p.sum)
	return crew.ServeHTTP(ctx, mux)
}

// place is where a charge's bit is.
func place(r *http.Request) (word int, bit uint64, err error) {
	number, err := strconv.ParseUint(r.PathValue("number"), 10, 48)
	number /= chargesEvery
	return int(number / 64), 1 << (number % 64), err
}

func (p *provider) charge(w http.ResponseWriter, r *http.Request) {
	word, bit, err := place(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.made) <= word {
		p.made = append(p.made, 0)
	}
	if p.made[word]&bit != 0 {
		p.again++
	} else {
		p.once++
	}
	p.made[word] |= bit
}

func (p *provider) find(w http.ResponseWriter, r *http.Request) {
	word, bit, err := place(r)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil || word >= len(p.made) || p.made[word]&bit == 0 {
		http.NotFound(w, r)
	}
}

func (p *provider) sum(w http.ResponseWriter, _ *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintln(w, p.once, p.again)
}

// A caller asks the provider.
type caller struct {
	address string
	http    http.Client
}

func newCaller(address string) *caller {
	return &caller{address, http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
}

// charge makes a charge. Its error says nothing about it.
func (c *caller) charge(ctx context.Context, number string) error {
	_, err := c.do(ctx, http.MethodPost, "/charges/"+number)
	return err
}

// find tells whether a charge was made.
func (c *caller) find(ctx context.Context, number string) (made bool, err error) {
	_, err = c.do(ctx, http.MethodGet, "/charges/"+number)
	if errors.Is(err, errNotFound) {
		return false, nil
	}
	return err == nil, err
}

// sum is how many charges were made, and how many of them again.
func (c *caller) sum(ctx context.Context) (once, again int64, err error) {
	text, err := c.do(ctx, http.MethodGet, "/ledger")
	if err == nil {
		_, err = fmt.Sscan(text, &once, &again)
	}
	return once, again, err
}

var errNotFound = errors.New("not found")

func (c *caller) do(ctx context.Context, method, path string) (text string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, c.address+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return "", errNotFound
	case resp.StatusCode != http.StatusOK:
		return "", errors.New(resp.Status)
	}
	return string(body), err
}
