package guard

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// A Tenant is one of those who share a guard. Each has claims of its own.
type Tenant struct {
	Name     string // as the tenants file has it
	KeyID    string // of the API key by which it was found, for the log and the events
	Operator bool   // whether that key may resolve what is in doubt
}

// Tenants are the tenants of a guard, read from a file: see TenantEntry. Call Check, or
// Run, before the rest; its methods may be called by several goroutines at a time.
type Tenants struct {
	// File is the path of the tenants file; required. Others than its owner must not be
	// able to write it.
	File string

	// Rate is how many requests a second a tenant may make whose entry does not say, and
	// Burst how many at once. A Rate of 0 means any number; a Burst of 0, twice the Rate.
	Rate  float64
	Burst int

	// Logger hears when the file was read again, or cannot be used, and when a key is still
	// used that has expired. It gets no keys and no digests. nil means slog.Default().
	Logger *slog.Logger

	loading sync.Mutex // one reads the file at a time
	seen    string     // what was in the file the last time
	wrong   error      // why that could not be used
	now     atomic.Pointer[tenantsNow]
}

// tenantsNow is what a tenants file says. It does not change.
type tenantsNow struct {
	all    []Tenant
	keys   map[[keyIndex]byte][]knownKey // by the first bytes of their digests
	limits map[string]*rate.Limiter      // by tenant; nil is no limit
	warns  map[string]*rate.Limiter      // by the id of a key: how often it is logged
}

type knownKey struct {
	digest [32]byte
	entry  KeyEntry
	tenant string
}

const (
	keyIndex = 8               // bytes
	rereads  = 2 * time.Second // how often Run looks at the file
	rewarns  = time.Minute     // how often an expired key that is still used is logged
)

// Check reads the file, and takes its tenants. Its error names the file, the tenant and
// the field that is wrong.
func (t *Tenants) Check() error {
	switch {
	case t.File == "":
		return errors.New("guard: Tenants.File is empty: name a tenants file, as oncemill guard tenants add makes it")
	case t.Rate != 0 && !(t.Rate >= leastRate && t.Rate <= mostRate):
		return errors.New("guard: Tenants.Rate must be 0, or 0.001 to 1000000 requests a second")
	case t.Burst < 0 || t.Burst > mostRate || t.Burst > 0 && t.Rate == 0:
		return errors.New("guard: Tenants.Burst must be 0 to 1000000, and goes with a Rate")
	}
	t.loading.Lock()
	defer t.loading.Unlock()
	_, err := t.load()
	return err
}

// Run takes the tenants anew when the content of the file has changed, about 2 seconds
// later, until ctx ends. The file may be written, replaced, or be behind symbolic links
// that are, such as in a Secret of Kubernetes. One that cannot be used leaves the tenants
// as they were, and is logged once. Run returns an error only if there was no Check before
// it and the first reading fails.
func (t *Tenants) Run(ctx context.Context) error {
	if t.now.Load() == nil {
		if err := t.Check(); err != nil {
			return err
		}
	}
	ticker := time.NewTicker(rereads)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			t.reread(ctx)
		}
	}
}

func (t *Tenants) reread(ctx context.Context) {
	t.loading.Lock()
	defer t.loading.Unlock()
	switch changed, err := t.load(); {
	case changed && err != nil:
		t.logger().ErrorContext(ctx, "guard: the tenants stay as they were", "error", err)
	case changed:
		now := t.now.Load()
		keys := 0
		for _, some := range now.keys {
			keys += len(some)
		}
		t.logger().InfoContext(ctx, "guard: the tenants file has changed", "file", t.File, "tenants", len(now.all), "keys", keys)
	}
}

func (t *Tenants) logger() *slog.Logger {
	if t.Logger == nil {
		return slog.Default()
	}
	return t.Logger
}

// load reads the file, and tells whether that came out otherwise than the last time.
func (t *Tenants) load() (changed bool, err error) {
	content, err := readTenantsFile(t.File)
	seen := "content: " + string(content)
	if err != nil {
		seen = "error: " + err.Error()
	}
	if seen == t.seen {
		return false, t.wrong
	}
	var entries []TenantEntry
	if err == nil {
		entries, err = parseTenants(t.File, content)
	}
	if err == nil {
		t.now.Store(t.take(entries))
	}
	t.seen, t.wrong = seen, err
	return true, err
}

// take makes tenants of entries. Limits that were there go on as they are filled.
func (t *Tenants) take(entries []TenantEntry) *tenantsNow {
	now := &tenantsNow{
		keys:   make(map[[keyIndex]byte][]knownKey),
		limits: make(map[string]*rate.Limiter), warns: make(map[string]*rate.Limiter),
	}
	old := t.now.Load()
	if old == nil {
		old = new(tenantsNow)
	}
	for _, e := range entries {
		now.all = append(now.all, Tenant{Name: e.Name})
		now.limits[e.Name] = t.limiter(old.limits[e.Name], e)
		for _, k := range e.Keys {
			digest := k.digest()
			index := [keyIndex]byte(digest[:])
			now.keys[index] = append(now.keys[index], knownKey{digest, k, e.Name})
			if now.warns[k.ID] = old.warns[k.ID]; now.warns[k.ID] == nil {
				now.warns[k.ID] = rate.NewLimiter(rate.Every(rewarns), 1)
			}
		}
	}
	return now
}

// limiter returns the limiter of a tenant, which is the one it had if it had one.
func (t *Tenants) limiter(had *rate.Limiter, e TenantEntry) *rate.Limiter {
	limit, burst := e.Rate, e.Burst
	if limit == 0 {
		limit, burst = t.Rate, t.Burst
	}
	if limit == 0 {
		return nil
	}
	if burst == 0 {
		burst = max(1, int(2*limit))
	}
	if had == nil {
		return rate.NewLimiter(rate.Limit(limit), burst)
	}
	had.SetLimit(rate.Limit(limit))
	had.SetBurst(burst)
	return had
}

// Find returns the tenant whose API key this is. Keys that are unknown and keys that have
// expired, by this machine's clock, are the same to the caller. That one has expired and is
// still used is logged, with its id, once a minute at most. How long Find takes does not
// depend on how much of a key is right: keys are found by their SHA-256.
func (t *Tenants) Find(apiKey string) (Tenant, bool) {
	now := t.now.Load()
	if now == nil || len(apiKey) > mostImport {
		return Tenant{}, false
	}
	digest := sha256.Sum256([]byte(apiKey))
	var found knownKey
	for _, k := range now.keys[[keyIndex]byte(digest[:])] {
		if subtle.ConstantTimeCompare(k.digest[:], digest[:]) == 1 {
			found = k
		}
	}
	if found.tenant == "" {
		return Tenant{}, false
	}
	if at := time.Now(); found.entry.Expired(at) {
		if now.warns[found.entry.ID].AllowN(at, 1) {
			t.logger().Warn("guard: an expired API key is still used", "tenant", found.tenant, "key", found.entry.ID, "expired", found.entry.Expires)
		}
		return Tenant{}, false
	}
	return Tenant{Name: found.tenant, KeyID: found.entry.ID, Operator: found.entry.Operator}, true
}

// All returns the tenants in the order of the file, without a KeyID.
func (t *Tenants) All() []Tenant {
	now := t.now.Load()
	if now == nil {
		return nil
	}
	return append([]Tenant(nil), now.all...)
}

// Allow tells whether a tenant may make one more request now, and counts it if so. If not,
// retryAfter is how long that will last unless it makes others. Those who are no tenant,
// or no longer, may not.
func (t *Tenants) Allow(name string) (ok bool, retryAfter time.Duration) {
	now := t.now.Load()
	if now == nil {
		return false, rereads
	}
	limiter, ok := now.limits[name]
	switch at := time.Now(); {
	case !ok:
		return false, rereads
	case limiter == nil || limiter.AllowN(at, 1):
		return true, 0
	default:
		// A reservation that is cancelled would tell too, but it does not give back all
		// that it took while others reserve.
		missing := 1 - limiter.TokensAt(at)
		return false, max(time.Duration(missing/float64(limiter.Limit())*float64(time.Second)), time.Millisecond)
	}
}
