package conditions_test

import (
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/outbox"
)

// The server's max_payload is for payload and headers together. A row that has exactly
// so many bytes passes, one more is refused, and the others go on.
func TestPayloadsAtTheLimit(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	const created = "2026-01-02T03:04:05Z" // the header has as many digits as it needs
	raw := nats.NewMsg("")
	raw.Header[outbox.OriginMetadata] = []string{created}
	raw.Header[jetstream.UUIDHeader] = []string{"0"}
	raw.Header[nats.MsgIdHdr] = []string{"00000000-0000-4000-8000-000000000000"}
	room := int(s.nc.MaxPayload()) - raw.Size()
	for uuid, size := range map[string]int{"0": room, "1": room + 1, "2": room - 1, "3": 2 * room, "4": 10} {
		s.exec(`INSERT INTO oncemill.outbox (topic, uuid, created_at, payload) VALUES ('a', $1, $2, convert_to(repeat('x', $3), 'UTF8'))`, uuid, created, size)
	}
	d := s.relay()
	until(t, "two are left", patience, func() bool { return s.left() == 2 })
	rows, err := s.database.DB.Query(`SELECT uuid, coalesce(last_error, '') FROM oncemill.outbox WHERE parked_at IS NOT NULL AND attempts = 1 ORDER BY uuid`)
	must(t, err)
	defer rows.Close()
	parked := ""
	for rows.Next() {
		var uuid, text string
		must(t, rows.Scan(&uuid, &text))
		parked += uuid
		if !strings.Contains(text, "max_payload of 1048576") {
			t.Errorf("row %s is parked for %q", uuid, text)
		}
	}
	must(t, rows.Err())
	if parked != "13" {
		t.Errorf("rows %q are parked, want 1 and 3", parked)
	}
	got := make(map[string]bool)
	s.read(3, func(header nats.Header) { got[header.Get(jetstream.UUIDHeader)] = true })
	if !got["0"] || !got["2"] || !got["4"] {
		t.Errorf("rows %v have arrived", got)
	}
	d.stop()
}

// A batch has fewer rows where they are large.
func TestManyLargePayloadsAtBoundedMemory(t *testing.T) {
	t.Parallel()
	const total, keys, most = 400, 10, 200 * mib
	s := newSite(t, nil)
	s.exec(`
		INSERT INTO oncemill.outbox (topic, uuid, ordering_key, payload)
		SELECT 'a', n, CASE WHEN n % 2 = 0 THEN convert_to((n / 2 % $1)::text, 'UTF8') END, convert_to(repeat('x', 1000 * 1000), 'UTF8')
		FROM generate_series(0, $2 - 1) n ORDER BY n`, keys, total)
	d := s.relay()
	s.awaitEmpty()
	d.wantMemory(most)
	d.stop()
	if n := s.arrived(total, keys); n > 0 {
		t.Errorf("%d messages came twice", n)
	}
}
