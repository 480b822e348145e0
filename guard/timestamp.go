package guard

import (
	"math"
	"strconv"
	"time"
)

// timestamp is a time as seconds since 1970, with fractions.
type timestamp time.Time

func (t timestamp) IsZero() bool { return time.Time(t).IsZero() }

// MarshalJSON writes microseconds, which are what Postgres has.
func (t timestamp) MarshalJSON() ([]byte, error) {
	if t.IsZero() {
		return []byte("null"), nil
	}
	us := time.Time(t).UnixMicro()
	b := strconv.AppendInt(nil, us/1e6, 10)
	b = append(b, '.')
	fraction := strconv.Itoa(int(us%1e6) + 1e6)[1:]
	return append(b, fraction...), nil
}

// timeOf reads seconds since 1970. The years that it knows are those of Postgres.
func timeOf(text string) (t time.Time, ok bool) {
	const least, most = -2e11, 2e11
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(seconds) || seconds < least || seconds > most {
		return t, false
	}
	whole, fraction := math.Modf(seconds)
	return time.Unix(int64(whole), int64(fraction*1e9)).UTC(), true
}
