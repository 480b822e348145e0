// Package pgurl reads connection strings without repeating the passwords in
// them.
package pgurl

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/lib/pq"
)

// ErrSyntax is wrapped by the error for a connection string that cannot be read.
var ErrSyntax = errors.New("not a connection string (want postgres://user:password@host:5432/database?sslmode=..., with special characters in user and password percent-encoded, or key=value pairs as libpq takes them)")

// Normal returns a connection string in a form that lib/pq reads. Like libpq it
// takes several hosts, to be tried one after another, but not where other
// clients take them, as in postgres://host1:5432,host2:5433/database. Anything
// else is returned as it is.
func Normal(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" || !strings.Contains(u.Host, ",") {
		return address
	}
	var hosts, ports []string
	for _, host := range strings.Split(u.Host, ",") {
		name, port := host, "5432"
		if h, p, err := net.SplitHostPort(host); err == nil {
			name, port = h, p
		}
		hosts, ports = append(hosts, name), append(ports, port)
	}
	query := u.Query()
	query.Set("host", strings.Join(hosts, ","))
	query.Set("port", strings.Join(ports, ","))
	u.Host, u.RawQuery = "", query.Encode()
	return u.String()
}

// connectTimeout is what counts where the connection string says nothing.
const connectTimeout = 5 * time.Second

// Connector returns lib/pq's connector for a connection string. Its error wraps
// ErrSyntax. Where the string has no connect_timeout, it is 5 seconds: lib/pq does not
// heed its context while it waits for a server that takes a connection and says nothing.
func Connector(address string) (*pq.Connector, error) {
	config, err := pq.NewConfig(Normal(address))
	if err == nil {
		if config.ConnectTimeout == 0 {
			config.ConnectTimeout = connectTimeout
		}
		return pq.NewConnectorConfig(config)
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
