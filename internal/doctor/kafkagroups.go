package doctor

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// mostGroups is how many consumer groups are looked at.
const mostGroups = 100

// lookAtGroups looks at how far consumer groups are behind on some topics.
func (k *Kafka) lookAtGroups(ctx context.Context, topics []kmsg.MetadataResponseTopic) {
	ctx, cancel := context.WithTimeout(ctx, kafkaWithin)
	defer cancel()
	behind, states, err := k.lags(ctx, topics)
	if err != nil {
		k.skip("groups", "how far consumer groups are behind is not known: "+err.Error(), "let the user describe groups and topics")
		return
	}
	stopped := 0
	furthest, most := "", int64(0)
	for _, group := range slices.Sorted(maps.Keys(behind)) {
		lag := behind[group]
		if lag > most {
			furthest, most = group, lag
		}
		if lag > 0 && states[group] == "Empty" {
			stopped++
			k.warn("groups", fmt.Sprintf("group %q: %s, and it has no members", group, counted(lag, 0, "record waits", "records wait")), "what they should cause does not happen",
				"start its workers; or if it is not needed any more, delete it: kafka-consumer-groups.sh --delete --group "+group)
		}
	}
	switch {
	case stopped > 0:
	case most > 0:
		k.ok("groups", "%s; furthest behind is %q, by %s", counted(int64(len(behind)), 0, "group", "groups"), furthest, counted(most, 0, "record", "records"))
	default:
		k.ok("groups", "%s, none of them behind", counted(int64(len(behind)), 0, "group", "groups"))
	}
}

// lags returns by how many records each group is behind that has committed an offset of
// one of the topics, and the groups' states.
func (k *Kafka) lags(ctx context.Context, topics []kmsg.MetadataResponseTopic) (behind map[string]int64, states map[string]string, err error) {
	list, err := kmsg.NewPtrListGroupsRequest().RequestWith(ctx, k.Client)
	if err != nil {
		return nil, nil, err
	}
	states = make(map[string]string)
	request := kmsg.NewPtrOffsetFetchRequest()
	for _, g := range list.Groups {
		if (g.ProtocolType == "consumer" || g.ProtocolType == "") && len(request.Groups) < mostGroups {
			states[g.Group] = g.GroupState
			one := kmsg.NewOffsetFetchRequestGroup()
			one.Group = g.Group
			request.Groups = append(request.Groups, one)
		}
	}
	if len(request.Groups) == 0 {
		return nil, states, nil
	}
	ends, err := k.ends(ctx, topics)
	if err != nil {
		return nil, nil, err
	}
	committed, err := request.RequestWith(ctx, k.Client)
	if err != nil {
		return nil, nil, err
	}
	behind = make(map[string]int64)
	for _, g := range committed.Groups {
		for _, t := range g.Topics {
			for _, p := range t.Partitions {
				if end, ok := ends[partition{t.Topic, p.Partition}]; ok && p.Offset >= 0 {
					behind[g.Group] += max(0, end-p.Offset)
				}
			}
		}
	}
	return behind, states, nil
}

type partition struct {
	topic  string
	number int32
}

// ends returns the offsets that the next records will have.
func (k *Kafka) ends(ctx context.Context, topics []kmsg.MetadataResponseTopic) (map[partition]int64, error) {
	request := kmsg.NewPtrListOffsetsRequest()
	for _, t := range topics {
		one := kmsg.NewListOffsetsRequestTopic()
		one.Topic = *t.Topic
		for _, p := range t.Partitions {
			which := kmsg.NewListOffsetsRequestTopicPartition()
			which.Partition, which.Timestamp = p.Partition, -1
			one.Partitions = append(one.Partitions, which)
		}
		request.Topics = append(request.Topics, one)
	}
	response, err := request.RequestWith(ctx, k.Client)
	if err != nil {
		return nil, err
	}
	ends := make(map[partition]int64)
	for _, t := range response.Topics {
		for _, p := range t.Partitions {
			if p.ErrorCode == 0 {
				ends[partition{t.Topic, p.Partition}] = p.Offset
			}
		}
	}
	return ends, nil
}
