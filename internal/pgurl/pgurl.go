// Package pgurl reads connection strings without repeating the passwords in
// them.
package pgurl

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/lib/pq"
)

// ErrSyntax is wrapped by the error for a connection string that cannot be read.
var ErrSyntax = errors.New("not a connection string (want postgres://user:password@host:5432/database?sslmode=..., with special characters in user and password percent-encoded, or key=value pairs as libpq takes them)")

// Connector returns lib/pq's connector for a connection string. Its error wraps
// ErrSyntax.
func Connector(address string) (*pq.Connector, error) {
	connector, err := pq.NewConnector(address)
	if err == nil {
		return connector, nil
	}
	// The error may quote a part of the string, and in one that could not be
	// taken apart that part may be of the password.
	u, errURL := url.Parse(address)
	if errURL != nil || u.Host == "" {
		return nil, ErrSyntax
	}
	if password, _ := u.User.Password(); password != "" && strings.Contains(err.Error(), password) {
		return nil, ErrSyntax
	}
	return nil, fmt.Errorf("%w: %w", ErrSyntax, err)
}
