package natsserver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/oncemill/oncemill/testcontainers/internal/process"
)

// A Cluster is several NATS servers with JetStream that replicate streams to each
// other. Its nodes may be killed, started, frozen and thawed one by one.
type Cluster struct {
	nodes    []*Server
	monitors []int // the ports that the nodes answer questions about themselves on
}

// StartCluster starts a cluster and returns when its nodes know each other, so
// that a stream with as many replicas can be made. ctx bounds the start, not the
// cluster's life; Close ends that.
//
// The nodes are named n1, n2 and so on. options hold for each of them: with a Dir
// each has a directory of its name in it; Port must be 0. Clients are not told of
// the addresses of other nodes, for a client may have to come through a proxy.
func StartCluster(ctx context.Context, nodes int, options Options) (*Cluster, error) {
	if nodes < 2 {
		return nil, fmt.Errorf("start a NATS cluster of %d nodes: it takes 2, or rather 3; Start starts a single server", nodes)
	}
	if options.Port != 0 {
		return nil, fmt.Errorf("start a NATS cluster: Options.Port is %d, and its nodes cannot share a port: leave it out", options.Port)
	}
	ctx, cancel := context.WithTimeout(ctx, clusterLimit)
	defer cancel()
	for tries := 1; ; tries++ {
		c, err := startNodes(ctx, nodes, options)
		if err == nil {
			return c, nil
		}
		// Somebody may have been faster in taking a port.
		if tries == 5 || !strings.Contains(err.Error(), "address already in use") {
			return nil, err
		}
	}
}

// clusterLimit is how long a cluster may take to start on a busy machine.
const clusterLimit = 2 * time.Minute

func startNodes(ctx context.Context, nodes int, options Options) (*Cluster, error) {
	c := &Cluster{nodes: make([]*Server, nodes)}
	ports, err := freePorts(2 * nodes)
	if err != nil {
		return nil, fmt.Errorf("start a NATS cluster: %w", err)
	}
	routes := ports[:nodes]
	c.monitors = ports[nodes:]
	// All at once: none is ready before most of them are there.
	errs := make([]error, nodes)
	var group sync.WaitGroup
	for i := range nodes {
		group.Go(func() {
			c.nodes[i], errs[i] = Start(ctx, c.node(i, routes, options))
		})
	}
	group.Wait()
	err = errors.Join(errs...)
	if err == nil {
		err = c.formed(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start a NATS cluster: %w", err), c.Close())
	}
	return c, nil
}

// freePorts returns ports that nobody listens on, each once.
func freePorts(n int) ([]int, error) {
	taken := map[int]bool{}
	var ports []int
	for len(ports) < n {
		port, err := process.FreePort()
		if err != nil {
			return nil, err
		}
		if !taken[port] {
			taken[port] = true
			ports = append(ports, port)
		}
	}
	return ports, nil
}

func name(node int) string { return fmt.Sprintf("n%d", node+1) }

// node returns the options of one node.
func (c *Cluster) node(i int, routes []int, options Options) Options {
	var others []string
	for j, port := range routes {
		if j != i {
			others = append(others, fmt.Sprintf("\"nats://127.0.0.1:%d\"", port))
		}
	}
	if options.Dir != "" {
		options.Dir = filepath.Join(options.Dir, name(i))
	}
	options.Config = fmt.Sprintf(`server_name: %q
http: "127.0.0.1:%d"
cluster {
	name: "oncemill"
	listen: "127.0.0.1:%d"
	no_advertise: true
	routes: [%s]
}
%s`, name(i), c.monitors[i], routes[i], strings.Join(others, ", "), options.Config)
	return options
}

// Nodes returns the nodes, in an order that never changes.
func (c *Cluster) Nodes() []*Server { return append([]*Server(nil), c.nodes...) }

// URLs returns the nodes' addresses for clients, in the order of Nodes.
func (c *Cluster) URLs() []string {
	var urls []string
	for _, node := range c.nodes {
		urls = append(urls, node.URL())
	}
	return urls
}

// Leader returns the node that leads a stream, by the word of all nodes that
// answer. While there is none, or no such stream, it waits until ctx ends. After a
// kill of the leader it takes the others 4 to 9 seconds to elect one.
func (c *Cluster) Leader(ctx context.Context, stream string) (*Server, error) {
	var found *Server
	err := repeat(ctx, func(ctx context.Context) (err error) {
		found, err = c.leader(ctx, stream)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find the leader of the stream %q: %w", stream, err)
	}
	return found, nil
}

// Close kills all nodes and removes their directories if those are temporary
// ones. Calling it again does nothing.
func (c *Cluster) Close() error {
	var err error
	for _, node := range c.nodes {
		if node != nil {
			err = errors.Join(err, node.Close())
		}
	}
	return err
}
