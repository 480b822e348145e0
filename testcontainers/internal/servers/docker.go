package servers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

// image is what runs where Docker provides the server.
const image = "postgres:18-alpine"

// EngineAnswers tells whether a Docker engine can be used. A client and a socket
// without an engine behind them are common, so it has to answer, and soon.
func EngineAnswers(ctx context.Context) (answers bool) {
	// The library panics where it finds no host to talk to.
	defer func() {
		if recover() != nil {
			answers = false
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	provider, err := testcontainers.NewDockerProvider()
	if err != nil {
		return false
	}
	defer provider.Close()
	return provider.Health(ctx) == nil
}

// dockerPostgres starts a server in a container. A container of testcontainers'
// own removes it if this process is killed.
func dockerPostgres(ctx context.Context) (address string, stop func() error, err error) {
	password := rand.Text()
	request := testcontainers.ContainerRequest{
		Image:        image,
		ExposedPorts: []string{"5432/tcp"},
		Env:          map[string]string{"POSTGRES_PASSWORD": password},
		Cmd:          []string{"postgres", "-c", "max_connections=300", "-c", "fsync=off", "-c", "full_page_writes=off"},
		// The image starts the server twice; the first one is for setup.
		WaitingFor: wait.ForLog("database system is ready to accept connections").
			WithOccurrence(2).WithStartupTimeout(2 * time.Minute),
		HostConfigModifier: publishLocally(ctx),
	}
	c, err := testcontainers.GenericContainer(ctx, testcontainers.GenericContainerRequest{
		ContainerRequest: request, Started: true,
	})
	stop = func() error { return testcontainers.TerminateContainer(c) }
	var host string
	if err == nil {
		host, err = c.PortEndpoint(ctx, "5432/tcp", "")
	}
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("start Postgres with Docker: %w", err), stop())
	}
	return "postgres://postgres:" + password + "@" + host + "/postgres?sslmode=disable", stop, nil
}

// publishLocally keeps the container's port on 127.0.0.1, where Docker would
// open it on all interfaces. That is possible only if the engine runs here, and
// not next to the container that the tests run in, or elsewhere.
func publishLocally(ctx context.Context) func(*container.HostConfig) {
	provider, err := testcontainers.NewDockerProvider()
	if err != nil {
		return nil // and the container will not start either
	}
	defer provider.Close()
	if host, err := provider.DaemonHost(ctx); err != nil || host != "localhost" {
		return nil
	}
	return func(config *container.HostConfig) {
		config.PortBindings = network.PortMap{
			network.MustParsePort("5432/tcp"): {{HostIP: netip.MustParseAddr("127.0.0.1")}},
		}
	}
}
