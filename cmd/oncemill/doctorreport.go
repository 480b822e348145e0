package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/oncemill/oncemill/internal/doctor"
)

// A doctorReport writes findings as they come.
type doctorReport struct {
	w     io.Writer
	json  bool
	part  string // of the finding before
	count map[doctor.Level]int
	err   error // of w
}

// print writes findings: a line each, and what there is to say about it in lines below.
func (r *doctorReport) print(findings []doctor.Finding) {
	if r.count == nil {
		r.count = make(map[doctor.Level]int)
	}
	for _, f := range findings {
		r.count[f.Level]++
	}
	if r.json {
		r.note(printJSON(r.w, findings))
		return
	}
	var b strings.Builder
	for _, f := range findings {
		if f.Part != r.part {
			fmt.Fprintf(&b, "%s\n", partNames[f.Part])
			r.part = f.Part
		}
		fmt.Fprintf(&b, "%-4s  %s: %s\n", f.Level, f.Check, f.Found)
		more(&b, "Why: ", f.Why)
		more(&b, "Do:  ", f.Do)
	}
	_, err := io.WriteString(r.w, b.String())
	r.note(err)
}

var partNames = map[string]string{doctor.PartPostgres: "Postgres", doctor.PartNATS: "NATS", doctor.PartKafka: "Kafka"}

func more(b *strings.Builder, label, text string) {
	if text == "" {
		return
	}
	fmt.Fprintf(b, "      %s%s\n", label, strings.ReplaceAll(text, "\n", "\n           "))
}

func (r *doctorReport) note(err error) {
	if r.err == nil {
		r.err = err
	}
}

// end writes the sum, and returns an error if something does not work.
func (r *doctorReport) end(broker bool) error {
	if !r.json {
		if !broker {
			_, err := fmt.Fprintf(r.w, "No broker was looked at: name one by --nats-url or --kafka-brokers.\n")
			r.note(err)
		}
		_, err := fmt.Fprintf(r.w, "%d OK, %d WARN, %d FAIL, %d SKIP\n", r.count[doctor.OK], r.count[doctor.Warn], r.count[doctor.Fail], r.count[doctor.Skip])
		r.note(err)
	}
	if r.err != nil {
		return r.err
	}
	switch n := r.count[doctor.Fail]; n {
	case 0:
		return nil
	case 1:
		return errors.New("1 finding is FAIL")
	default:
		return fmt.Errorf("%d findings are FAIL", n)
	}
}
