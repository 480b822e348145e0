package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/guard/client"
)

// calls is the kind of the agents' effects.
const calls = "calls"

const (
	agentPause = 50 * time.Millisecond // between two calls
	againAfter = 50                    // so many calls an agent repeats that was killed
	agentCalls = 16                    // at a time
)

// An agent makes effects at the provider, each under a claim at one of the guards. It
// writes down each call before it begins.
type agent struct {
	setting
	trace  *trace
	begun  *os.File
	caller *caller
	guards []*client.Client
}

func begunFile(dir string, place int) string {
	return filepath.Join(dir, fmt.Sprintf("agent-%d.begun", place))
}

// readBegun returns the numbers of the calls that an agent has begun.
func readBegun(dir string, place int) ([]int, error) {
	return readLines(begunFile(dir, place), func(line []byte) (int, error) { return strconv.Atoi(string(line)) })
}

func callID(place, n int) string { return fmt.Sprintf("call-%d-%d", place, n) }

func act(ctx context.Context, s setting) (err error) {
	a := &agent{setting: s, caller: newCaller(s.Provider)}
	if a.trace, err = openTrace(s); err != nil {
		return err
	}
	defer a.trace.close()
	if a.begun, err = os.OpenFile(begunFile(s.Dir, s.Place), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return err
	}
	defer a.begun.Close()
	for _, url := range s.Guards {
		transport := &http.Transport{MaxIdleConnsPerHost: 32}
		a.guards = append(a.guards, &client.Client{
			URL: url, Timeout: time.Second, Patience: 2 * time.Second, HTTP: &http.Client{Transport: transport}})
	}
	before, err := readBegun(s.Dir, s.Place)
	if err != nil {
		return err
	}
	last := 0
	if len(before) > 0 {
		last = before[len(before)-1]
	}
	crew.Say(running)
	var pending sync.WaitGroup
	defer pending.Wait()
	slots := make(chan struct{}, agentCalls)
	for n := max(1, last-againAfter); n <= last || ctx.Err() == nil; n++ {
		if n > last {
			if _, err := fmt.Fprintln(a.begun, n); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
			case <-time.After(agentPause):
			}
		}
		slots <- struct{}{}
		pending.Go(func() {
			a.call(n)
			<-slots
		})
	}
	return nil
}

// call makes one effect, trying one guard after the other until one of them knows what
// became of it, also after the agent was told to end. What is in doubt may be so because a
// claim came too late to be used, and is given back a moment later: it is tried again, once.
func (a *agent) call(n int) {
	id, doubts := callID(a.Place, n), 0
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	request := client.Request{ID: id, Action: "mail", Agent: fmt.Sprint(a.Role, " ", a.Place), Lease: lease}
	for try := n; ctx.Err() == nil; try++ {
		_, err := a.guards[try%len(a.guards)].Do(ctx, request, a.effect(id))
		a.trace.note(id, "call %d: %.200v", try-n+1, err)
		switch {
		case err == nil || errors.Is(err, client.ErrFailed):
			return
		case errors.Is(err, client.ErrInDoubt):
			if doubts++; doubts == 2 {
				return
			}
			time.Sleep(lease)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (a *agent) effect(id string) func(context.Context) (json.RawMessage, error) {
	return func(ctx context.Context) (json.RawMessage, error) {
		claim, _ := client.ClaimFromContext(ctx)
		ctx, cancel := context.WithTimeout(ctx, effectTimeout)
		defer cancel()
		receipt, err := a.caller.want(ctx, calls, id, claim.ProviderKey())
		a.trace.note(id, "the provider says %q, %v", receipt, err)
		if errors.Is(err, errRefused) {
			return nil, client.NeverWill(err)
		}
		result, _ := json.Marshal(map[string]string{"receipt": receipt}) // strings
		return result, err
	}
}
