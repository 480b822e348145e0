package durable_test

import (
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill/internal/durable"
	"github.com/oncemill/oncemill/internal/testenv"
)

func TestAWarningIsLoggedOnceInAProcess(t *testing.T) {
	t.Parallel()
	var log testenv.Log
	one := durable.Warning{Check: "durability", Found: "a thing of this test", Why: "lost", Do: "undo", Where: "here"}
	elsewhere := one
	elsewhere.Where = "there"
	for range 3 {
		durable.Tell(t.Context(), log.Logger(), []durable.Warning{one, elsewhere})
	}
	if n := log.Count("level=WARN msg=\"oncemill: a thing of this test\" check=durability why=lost do=undo\n"); n != 2 {
		t.Errorf("%d lines, want one of each place:\n%s", n, log.String())
	}
}

// Clusters of brokers, and what only they can have.
func TestCopiesThatAreTooFewAreNamed(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		warnings []durable.Warning
		words    string // separated by |; "": there is no warning
	}{
		"a topic in order":           {durable.Topic{Name: "t", Replicas: 3, Brokers: 3, Least: 2}.Copies(), ""},
		"a topic that takes nothing": {durable.Topic{Name: "t", Replicas: 1, Brokers: 1, Least: 2}.Copies(), ""},
		"not known":                  {durable.Topic{Name: "t", Replicas: 3, Brokers: 3}.Copies(), ""},
		"one insync":                 {durable.Topic{Name: "t", Replicas: 3, Brokers: 3, Least: 1}.Copies(), "3 replicas, but min.insync.replicas is 1|power failure|min.insync.replicas=2"},
		"one replica":                {durable.Topic{Name: "t", Replicas: 1, Brokers: 3, Least: 1}.Copies(), "one replica|power failure|kafka-reassign-partitions.sh"},
		"one broker":                 {durable.Topic{Name: "t", Replicas: 1, Brokers: 1, Least: 1}.Copies(), "one replica|run three brokers"},
		"unclean":                    {durable.Topic{Name: "t", Replicas: 3, Brokers: 3, Least: 2, Unclean: true}.Copies(), "unclean.leader.election.enable=false"},
		"a stream in order":          {durable.Stream{Name: "s", Replicas: 3, Clustered: true}.Copies(), ""},
		"a stream of a cluster":      {durable.Stream{Name: "s", Replicas: 1, Clustered: true}.Copies(), "one replica|power failure|nats stream edit s --replicas 3"},
		"replicas in memory":         {durable.Stream{Name: "s", Replicas: 3, Memory: true, Clustered: true}.Copies(), "is in memory|restart together|--storage file"},
		"retention in order":         {durable.Stream{Name: "s", Kept: time.Hour}.Horizon(durable.Claims{Kept: time.Hour}), ""},
		"retention not known":        {durable.Stream{Name: "s"}.Horizon(durable.Claims{}), ""},
		"a topic's not known":        {durable.Topic{Name: "t"}.Horizon(durable.Claims{Kept: time.Hour}), ""},
	} {
		text := ""
		for _, w := range test.warnings {
			text += w.Found + ", " + w.Why + ", " + w.Do
			if w.Check == "" || w.Found == "" || w.Why == "" || w.Do == "" {
				t.Errorf("%s: %+v", name, w)
			}
		}
		for word := range strings.SplitSeq(test.words, "|") {
			if !strings.Contains(text, word) || test.words == "" && text != "" {
				t.Errorf("%s: want %q, got %q", name, test.words, text)
			}
		}
	}
}
