package servers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"

	"github.com/oncemill/oncemill/testcontainers/internal/kafkaconfig"
	"github.com/oncemill/oncemill/testcontainers/internal/process"
)

// What runs where Docker provides the servers.
const (
	postgresImage = "postgres:18-alpine"
	kafkaImage    = "apache/kafka:4.3.1"
)

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
		Image:        postgresImage,
		ExposedPorts: []string{"5432/tcp"},
		Env:          map[string]string{"POSTGRES_PASSWORD": password},
		Cmd:          []string{"postgres", "-c", "max_connections=300", "-c", "fsync=off", "-c", "full_page_writes=off"},
		// The image starts the server twice; the first one is for setup.
		WaitingFor: wait.ForLog("database system is ready to accept connections").
			WithOccurrence(2).WithStartupTimeout(2 * time.Minute),
	}
	if host, err := engineHost(ctx); err == nil && host == here {
		request.HostConfigModifier = publish("5432/tcp", loopback, "")
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

// dockerKafka starts a Kafka in a container. It tells its clients where it is, so
// its port has to be known before it starts.
func dockerKafka(ctx context.Context) (brokers string, stop func() error, err error) {
	host, err := engineHost(ctx)
	if err != nil {
		return "", nil, fmt.Errorf("start Kafka with Docker: %w", err)
	}
	port, err := process.FreePort()
	if err != nil {
		return "", nil, err
	}
	interfaces := netip.IPv4Unspecified()
	if host == here {
		host, interfaces = loopback.String(), loopback
	}
	brokers = net.JoinHostPort(host, strconv.Itoa(port))
	request := testcontainers.ContainerRequest{
		Image:              kafkaImage,
		ExposedPorts:       []string{"9094/tcp"},
		Env:                kafkaconfig.Environment(kafkaSettings(brokers)),
		WaitingFor:         wait.ForLog("Kafka Server started").WithStartupTimeout(2 * time.Minute),
		HostConfigModifier: publish("9094/tcp", interfaces, strconv.Itoa(port)),
	}
	c, err := testcontainers.GenericContainer(ctx, testcontainers.GenericContainerRequest{
		ContainerRequest: request, Started: true,
	})
	stop = func() error { return testcontainers.TerminateContainer(c) }
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("start Kafka with Docker: %w", err), stop())
	}
	return brokers, stop, nil
}

// kafkaSettings are those of a single node that clients find at the advertised
// address.
func kafkaSettings(advertised string) string {
	return kafkaconfig.Common + `log.dirs=/tmp/kafka
listeners=BROKER://localhost:9092,CONTROLLER://localhost:9093,CLIENTS://:9094
advertised.listeners=BROKER://localhost:9092,CLIENTS://` + advertised + `
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT,CLIENTS:PLAINTEXT
controller.quorum.voters=1@localhost:9093
`
}

// here is what an engine's host is called if it is this machine, and not next to
// the container that the tests run in, or elsewhere.
const here = "localhost"

var loopback = netip.MustParseAddr("127.0.0.1")

// engineHost returns the host that the ports of containers are open on.
func engineHost(ctx context.Context) (string, error) {
	provider, err := testcontainers.NewDockerProvider()
	if err != nil {
		return "", err
	}
	defer provider.Close()
	return provider.DaemonHost(ctx)
}

// publish opens a container's port on one interface, where Docker would open it
// on all. hostPort "" means a free port.
func publish(port string, on netip.Addr, hostPort string) func(*container.HostConfig) {
	return func(config *container.HostConfig) {
		config.PortBindings = network.PortMap{
			network.MustParsePort(port): {{HostIP: on, HostPort: hostPort}},
		}
	}
}
