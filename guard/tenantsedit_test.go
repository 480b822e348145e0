package guard_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/oncemill/oncemill/guard"
)

// adding returns an edit that adds a tenant.
func adding(name string) func([]guard.TenantEntry) ([]guard.TenantEntry, error) {
	return func(tenants []guard.TenantEntry) ([]guard.TenantEntry, error) {
		_, entry := newTenant(name)
		return append(tenants, entry), nil
	}
}

func TestEditsAtTheSameTimeLoseNothing(t *testing.T) {
	t.Parallel()
	file := newFile(t)
	var edits sync.WaitGroup
	for n := range 20 {
		edits.Go(func() {
			if err := guard.EditTenants(file, adding(fmt.Sprintf("tenant-%d", n))); err != nil {
				t.Error(err)
			}
			// The file is whole at any time.
			if _, err := guard.ReadTenants(file); err != nil {
				t.Error(err)
			}
		})
	}
	edits.Wait()
	tenants, err := guard.ReadTenants(file)
	noError(t, err)
	if len(tenants) != 20 {
		t.Errorf("%d of 20 tenants are there", len(tenants))
	}
	wantAlone(t, file)
}

// wantAlone wants nothing to be left beside a file.
func wantAlone(t *testing.T, file string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(file))
	noError(t, err)
	if len(entries) != 1 {
		t.Errorf("beside the file there is %v", entries)
	}
}

func TestAnEditKeepsModeAndOwnerAndLinks(t *testing.T) {
	t.Parallel()
	file := newFile(t)
	info, err := os.Stat(file)
	noError(t, err)
	if info.Mode() != 0o600 {
		t.Errorf("a new file has mode %v", info.Mode())
	}
	noError(t, os.Chmod(file, 0o640))
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 { // only root gives files away
		uid, gid = 4711, 4712
		noError(t, os.Chown(file, uid, gid))
	}
	link := filepath.Join(t.TempDir(), "link")
	noError(t, os.Symlink(file, link))
	noError(t, guard.EditTenants(link, adding("acme")))
	if info, err = os.Lstat(link); err != nil || info.Mode().Type() != os.ModeSymlink {
		t.Errorf("the link has become %v (%v)", info, err)
	}
	info, err = os.Stat(file)
	noError(t, err)
	stat := info.Sys().(*syscall.Stat_t)
	if info.Mode() != 0o640 || int(stat.Uid) != uid || int(stat.Gid) != gid {
		t.Errorf("mode %v, owner %d:%d; want 0640 and %d:%d", info.Mode(), stat.Uid, stat.Gid, uid, gid)
	}
	tenantsOf(t, file)
}

func TestAnEditThatFailsLeavesTheFileAsItIs(t *testing.T) {
	t.Parallel()
	file := newFile(t)
	noError(t, guard.EditTenants(file, adding("acme")))
	before, err := os.ReadFile(file)
	noError(t, err)
	mine := errors.New("changed my mind")
	for says, edit := range map[string]func([]guard.TenantEntry) ([]guard.TenantEntry, error){
		"have the same name": adding("acme"),
		"field name: want":   adding("no name"),
		"changed my mind": func([]guard.TenantEntry) ([]guard.TenantEntry, error) {
			return nil, mine
		},
	} {
		err := guard.EditTenants(file, edit)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got error %v, want one that says %q", err, says)
		}
	}
	after, err := os.ReadFile(file)
	noError(t, err)
	if string(after) != string(before) {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	wantAlone(t, file)
	raw(t, file, "{")
	if err := guard.EditTenants(file, adding("globex")); err == nil || !strings.Contains(err.Error(), "not JSON") {
		t.Errorf("a broken file was edited: %v", err)
	}
	for _, nowhere := range []string{"", filepath.Join(file, "x"), filepath.Join(filepath.Dir(file), "no", "x")} {
		if err := guard.EditTenants(nowhere, adding("globex")); err == nil || !strings.HasPrefix(err.Error(), "tenants file") {
			t.Errorf("%q: got error %v", nowhere, err)
		}
	}
	noError(t, os.Remove(file))
	noError(t, os.Symlink("nothing", file))
	if err := guard.EditTenants(file, adding("globex")); err == nil || !strings.Contains(err.Error(), "a symbolic link to nothing") {
		t.Errorf("got error %v", err)
	}
}
