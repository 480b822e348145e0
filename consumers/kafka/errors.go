package kafka

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// unreachable says which brokers an error came from, and what to do.
func unreachable(client *kgo.Client, err error) error {
	seeds, _ := client.OptValue(kgo.SeedBrokers).([]string)
	where := "brokers " + strings.Join(seeds, ",")
	var broker *kerr.Error
	var authority x509.UnknownAuthorityError
	switch known := explained(err); {
	case known != err:
		return fmt.Errorf("%s: %w", where, known)
	case errors.As(err, &broker):
		return fmt.Errorf("%s: %w", where, err)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", where, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s do not answer: %w (check the addresses in kgo.SeedBrokers and that the brokers run)", where, err)
	case errors.As(err, &authority):
		return fmt.Errorf("cannot connect to %s: %w (give the certificate authority in kgo.DialTLSConfig)", where, err)
	}
	return fmt.Errorf("cannot connect to %s: %w (check the addresses in kgo.SeedBrokers, that the brokers run, and whether this listener wants TLS or SASL)", where, err)
}

// explained adds to errors of the brokers what they do not say.
func explained(err error) error {
	for known, remedy := range map[*kerr.Error]string{
		kerr.SaslAuthenticationFailed:  "the brokers refuse the credentials; check the user and the password in kgo.SASL",
		kerr.IllegalSaslState:          "the brokers want no SASL on this listener; leave kgo.SASL out or use another port",
		kerr.UnsupportedSaslMechanism:  "the brokers do not offer this SASL mechanism; choose another one in kgo.SASL",
		kerr.GroupAuthorizationFailed:  "this user may not use the group; give it READ on the group with kafka-acls.sh",
		kerr.TopicAuthorizationFailed:  "this user may not use the topic; give it the rights with kafka-acls.sh",
		kerr.InconsistentGroupProtocol: "other members of the group divide the partitions in another way; use the same kgo.Balancers as they do (watermill-kafka and Sarama: kgo.RangeBalancer), or another Group",
		kerr.FencedInstanceID:          "another process has the same kgo.InstanceID; give each its own",
	} {
		if errors.Is(err, known) {
			return fmt.Errorf("%w: %s", err, remedy)
		}
	}
	return err
}
