package durable

import (
	"fmt"
	"time"
)

// A Stream is one of JetStream.
type Stream struct {
	Name      string
	Memory    bool
	Replicas  int
	Clustered bool // the server is one of several

	Kept time.Duration // MaxAge; 0 is for ever
	Work bool          // it is a work queue
}

// Copies warns if what the stream has acknowledged may be lost.
func (s Stream) Copies() (all []Warning) {
	add := func(grave bool, check, found, why, do string) {
		all = append(all, Warning{Check: check, Found: fmt.Sprintf("stream %q %s", s.Name, found), Why: why, Do: do, Grave: grave})
	}
	switch one := s.Replicas <= 1; {
	case s.Memory && one:
		add(true, "storage", "is in memory, with one replica", "a restart of the server loses its messages, which the outbox has deleted since they were acknowledged", s.inCluster("make it with --storage file", ", and --replicas 3"))
		return all
	case s.Memory:
		add(false, "storage", "is in memory", "servers that restart together lose its messages, which the outbox has deleted since they were acknowledged", "make it with --storage file")
	case one:
		add(false, "replicas", "has one replica",
			"the server acknowledges before it flushes to the disk, unless its sync_interval is always: after a power failure, or with the disk, messages are lost that the outbox has deleted",
			s.inCluster("", "nats stream edit "+s.Name+" --replicas 3; or ")+"set sync_interval: always in the server's jetstream block, or have the relay keep what it has published (--keep)")
	}
	return all
}

// inCluster is an advice, with what only a cluster can have.
func (s Stream) inCluster(advice, replicas string) string {
	if s.Clustered {
		return advice + replicas
	}
	return advice
}

// Horizon warns if the stream can send a message again when its claim is purged. A work
// queue cannot: there, a message goes when it is acknowledged.
func (s Stream) Horizon(c Claims) []Warning {
	if s.Work && s.Kept == 0 {
		return nil
	}
	return c.horizon(fmt.Sprintf("stream %q keeps messages for %s", s.Name, Lasting(s.Kept)), s.Kept,
		fmt.Sprintf("nats stream edit %s --max-age %dh", s.Name, max(1, int(c.Kept/time.Hour))))
}

// A Topic is one of Kafka.
type Topic struct {
	Name     string
	Replicas int // of the partition with the fewest
	Brokers  int // that there are
	Least    int // min.insync.replicas; 0: not known
	Unclean  bool

	Kept      time.Duration // retention.ms; 0 or less is for ever
	KeptKnown bool
}

// Alter is the command that changes a topic's configuration.
func Alter(topic, config string) string {
	return "kafka-configs.sh --alter --entity-type topics --entity-name " + topic + " --add-config " + config
}

// Copies warns if what the brokers have acknowledged may be lost.
func (t Topic) Copies() (all []Warning) {
	add := func(check, found, why, do string) {
		all = append(all, Warning{Check: check, Found: fmt.Sprintf("topic %q has %s", t.Name, found), Why: why, Do: do})
	}
	switch {
	case t.Replicas < t.Least: // nothing is acknowledged
	case t.Replicas == 1:
		add("replicas", "one replica", "the broker acknowledges before it flushes to the disk: after a power failure, or with the disk, messages are lost that the outbox has deleted", t.more())
	case t.Least == 1:
		add("replicas", fmt.Sprintf("%d replicas, but min.insync.replicas is 1", t.Replicas),
			"while the others are behind, one broker alone acknowledges: after a power failure, or with its disk, messages are lost that the outbox has deleted", Alter(t.Name, "min.insync.replicas=2"))
	}
	if t.Unclean {
		add("unclean leaders", "unclean.leader.election.enable", "a replica that lacks what was acknowledged can become the leader, and it is lost", Alter(t.Name, "unclean.leader.election.enable=false"))
	}
	return all
}

func (t Topic) more() string {
	if t.Brokers < 3 {
		return "run three brokers, and give topics --replication-factor 3 with min.insync.replicas 2; or have the relay keep what it has published (--keep)"
	}
	return "kafka-reassign-partitions.sh, to three replicas for each partition of " + t.Name + ", and min.insync.replicas=2; or have the relay keep what it has published (--keep)"
}

// Horizon warns if the topic can send a message again when its claim is purged.
func (t Topic) Horizon(c Claims) []Warning {
	if !t.KeptKnown {
		return nil
	}
	return c.horizon(fmt.Sprintf("topic %q keeps records for %s", t.Name, Lasting(t.Kept)), t.Kept, Alter(t.Name, fmt.Sprintf("retention.ms=%d", c.Kept.Milliseconds())))
}

// Claims are those of who handles the messages of a stream or topic.
type Claims struct {
	Kept     time.Duration // 0 or less: not known
	Consumer string        // whose they are; "": of all
}

// horizon compares with them for how long a broker keeps messages: 0 or less is for ever.
func (c Claims) horizon(found string, kept time.Duration, command string) []Warning {
	if c.Kept <= 0 || kept > 0 && kept <= c.Kept {
		return nil
	}
	whose := "claims"
	if c.Consumer != "" {
		whose = fmt.Sprintf("claims of consumer %q", c.Consumer)
	}
	return []Warning{{
		Check: "retention",
		Found: fmt.Sprintf("%s, %s are kept for %s", found, whose, Seconds(c.Kept)),
		Why:   "a message that comes again after its claim was purged, as when a consumer is made anew, is not known any more. If it tells its time of origin, it is refused with ErrTooOld and becomes a dead letter; if not, its effects happen again",
		Do:    command + "; or raise Inbox.Retention (and the doctor's --retention), which costs about 200 bytes a claim",
	}}
}
