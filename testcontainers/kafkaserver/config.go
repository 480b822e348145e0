package kafkaserver

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"

	"github.com/oncemill/oncemill/testcontainers/internal/kafkaconfig"
)

// data is the directory of the topics, in that of the server. It is given to
// Kafka as it stands here, for properties are read as Latin-1 and a comma in a
// path would separate two of them.
const data = "data"

// properties are those of a process. It listens on 127.0.0.1 only, for clients and
// for the controller.
//
// After a crash the controller takes the broker for alive until its session has
// run out, and refuses it meanwhile. With Kafka's own 9 seconds, and heartbeats
// every 2, that would make up most of a restart.
const properties = `listeners=BROKER://127.0.0.1:%[1]d,CONTROLLER://127.0.0.1:%[2]d
advertised.listeners=BROKER://127.0.0.1:%[1]d
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.quorum.voters=1@127.0.0.1:%[2]d
log.dirs=` + data + `
broker.session.timeout.ms=1500
broker.heartbeat.interval.ms=300
`

// configure writes the settings. Of two lines for one property Java takes the
// later.
func (s *Server) configure(more string) error {
	text := kafkaconfig.Common + fmt.Sprintf(properties, s.port, s.controller) + more + "\n"
	return os.WriteFile(s.configFile(), []byte(text), 0o600)
}

// format creates the directory of the topics, unless there is one.
func (s *Server) format(ctx context.Context) error {
	dir := filepath.Join(s.dir, data)
	if _, err := os.Stat(filepath.Join(dir, "meta.properties")); err == nil {
		return nil
	}
	// What was left behind by one that did not come to its end.
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	command := s.command("128m", "kafka.tools.StorageTool", "format", "-t", clusterID(), "-c", s.configFile())
	if err := s.process.Run(ctx, command); err != nil {
		return fmt.Errorf("format the data directory: %w%s", err, s.logTail())
	}
	return nil
}

// clusterID returns a random identifier in Kafka's form.
func clusterID() string {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // it never fails
	id[0] &= 0x7f        // or it might begin with a dash, like an option
	return base64.RawURLEncoding.EncodeToString(id)
}
