package main

import (
	"errors"
	"strconv"
	"strings"

	"github.com/oncemill/oncemill/outbox"
)

// A selection is which rows of the outbox a command is for.
type selection struct {
	topic, err *string
	key        *[]byte
	id         *int64
	deferred   *bool
}

// selection declares the flags that say which rows are meant. None is read from the
// environment: what is to be changed is for the caller to write.
func (f *flags) selection() selection {
	s := selection{
		topic:    f.topicPattern(),
		key:      f.orderingKey(),
		err:      f.text("error", "TEXT", "only those whose error has this text in it"),
		id:       new(int64),
		deferred: f.toggle("deferred", "those that failed and wait for their next attempt, in place of the parked ones"),
	}
	f.add("id", "N", "only the one with this id", func(value string) (err error) {
		if *s.id, err = strconv.ParseInt(value, 10, 64); err != nil || *s.id == 0 {
			return errors.New("want an id as it is listed, a whole number")
		}
		return nil
	})
	f.onlyHere("error", "id", "deferred")
	return s
}

func (f *flags) topicPattern() *string {
	topic := f.text("topic", "TOPIC", "only those of this topic; a * in it stands for any characters:\n--topic 'orders.*'")
	f.onlyHere("topic")
	return topic
}

// orderingKey declares a flag for an ordering key, nil if it is not given.
func (f *flags) orderingKey() *[]byte {
	key := new([]byte)
	f.add("key", "KEY", "only those with this ordering key; as it is listed, if it is listed in\ndouble quotes", func(value string) error {
		if strings.HasPrefix(value, `"`) {
			unquoted, err := strconv.Unquote(value)
			if err != nil {
				return errors.New(`want what begins with a double quote as it is listed, such as "\x00\xff"`)
			}
			value = unquoted
		}
		*key = []byte(value)
		return nil
	})
	f.onlyHere("key")
	return key
}

func (s selection) filter() outbox.Filter {
	f := outbox.Filter{State: outbox.Parked, ID: *s.id, Topic: *s.topic, Key: *s.key, Error: *s.err}
	if *s.deferred {
		f.State = outbox.Deferred
	}
	return f
}

// isAll reports whether a filter leaves nothing out.
func isAll(f outbox.Filter) bool {
	return f.ID == 0 && f.Topic == "" && f.Key == nil && f.Error == ""
}

// checkAll wants a command that changes rows to be told which, or that all are meant.
func checkAll(f outbox.Filter, all bool) error {
	switch {
	case isAll(f) && !all:
		return usagef("needs to know which: give --topic, --key, --error or --id, or --all")
	case !isAll(f) && all:
		return usagef("takes --all, or --topic, --key, --error and --id, but not both")
	}
	return nil
}
