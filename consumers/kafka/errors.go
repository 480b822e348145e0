package kafka

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// unreachable says which brokers were to be reached.
func unreachable(client *kgo.Client, err error) error {
	seeds, _ := client.OptValue(kgo.SeedBrokers).([]string)
	var network net.Error
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &network) {
		return fmt.Errorf("brokers %s do not answer: %w (check the addresses in kgo.SeedBrokers, that the brokers run, and whether they want TLS)", strings.Join(seeds, ","), err)
	}
	return explained(err)
}

// explained adds to errors of the brokers what they do not say.
func explained(err error) error {
	for known, remedy := range map[*kerr.Error]string{
		kerr.SaslAuthenticationFailed:  "the brokers refuse the credentials; check the user and the password in kgo.SASL",
		kerr.IllegalSaslState:          "the brokers want no SASL on this listener; leave kgo.SASL out or use another port",
		kerr.UnsupportedSaslMechanism:  "the brokers do not offer this SASL mechanism; choose another one in kgo.SASL",
		kerr.GroupAuthorizationFailed:  "this user may not use the group; give it READ on the group with kafka-acls.sh",
		kerr.TopicAuthorizationFailed:  "this user may not use the topic; give it the rights with kafka-acls.sh",
		kerr.InconsistentGroupProtocol: "other members of the group divide the partitions in another way; use another Group, or the same kgo.Balancers as they do",
		kerr.FencedInstanceID:          "another process has the same kgo.InstanceID; give each its own",
	} {
		if errors.Is(err, known) {
			return fmt.Errorf("%w: %s", err, remedy)
		}
	}
	return err
}
