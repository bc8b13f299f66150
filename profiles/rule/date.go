package rule

import (
	"strconv"
	"strings"
	"time"
)

// The first number that is Unix milliseconds rather than seconds: the year 5138 in seconds, March 1973 in milliseconds.
const firstMilliseconds = 100_000_000_000

// parseDate reads a value as an instant: see the package comment.
func parseDate(v []byte) (ms int64, ok bool) {
	if v[0] != '"' {
		n, ok := parseNumber(v)
		if !ok {
			return 0, false
		}
		return numberDate(n)
	}
	s := text(v)
	if len(s) < len(time.DateOnly) || len(s) > 64 || s[0] < '0' || s[0] > '9' {
		return 0, false
	}
	if len(s) == len(time.DateOnly) {
		s = append(append(make([]byte, 0, len(time.RFC3339)), s...), "T00:00:00Z"...)
	}
	var t time.Time
	if err := t.UnmarshalText(s); err != nil {
		return 0, false
	}
	return t.UnixMilli(), true
}

func numberDate(n number) (ms int64, ok bool) {
	if ms, ok = n.floor(0); !ok {
		return 0, false
	}
	if -firstMilliseconds < ms && ms < firstMilliseconds {
		return n.floor(3)
	}
	return ms, true
}

// appendDate appends an instant as a JSON string of RFC 3339 in UTC.
func appendDate(b []byte, ms int64) []byte {
	b = append(b, '"')
	b = time.UnixMilli(ms).UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, '"')
}

// appendMoment appends an instant that is shown to somebody as a JSON string of RFC 3339 in UTC, always to the millisecond.
func appendMoment(b []byte, ms int64) []byte {
	b = append(b, '"')
	b = time.UnixMilli(ms).UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z07:00")
	return append(b, '"')
}

// units of durations, from the largest to the smallest.
var units = []struct {
	letter byte
	ms     int64
	name   string
}{
	{'w', 7 * 24 * 60 * 60 * 1000, "week"},
	{'d', 24 * 60 * 60 * 1000, "day"},
	{'h', 60 * 60 * 1000, "hour"},
	{'m', 60 * 1000, "minute"},
	{'s', 1000, "second"},
}

// parseDuration reads a duration like "1d12h". If it is not one, problem says what it must be.
func parseDuration(s string) (ms int64, problem string) {
	const form = `must be a duration of w, d, h, m and s, in this order, like "30d" or "1d12h"`
	rest := s
	for _, u := range units {
		n, after := digits([]byte(rest))
		if len(n) == 0 || len(after) == 0 || after[0] != u.letter {
			continue
		}
		value, err := strconv.ParseInt(string(n), 10, 64)
		if err != nil || value > MaxDuration.Milliseconds()/u.ms {
			return 0, "must be at most 3653d"
		}
		ms += value * u.ms
		rest = string(after[1:])
	}
	switch {
	case s == "" || rest != "":
		return 0, form
	case ms == 0:
		return 0, "must be longer than nothing"
	case ms > MaxDuration.Milliseconds():
		return 0, "must be at most 3653d"
	}
	return ms, ""
}

// appendDuration appends the one way to write a duration: without weeks.
func appendDuration(b []byte, ms int64) []byte {
	b = append(b, '"')
	for _, u := range units[1:] {
		if n := ms / u.ms; n > 0 {
			b = append(strconv.AppendInt(b, n, 10), u.letter)
			ms -= n * u.ms
		}
	}
	return append(b, '"')
}

// sayDuration returns a duration in words.
func sayDuration(ms int64) string {
	var parts []string
	for _, u := range units[1:] {
		if n := ms / u.ms; n > 0 {
			parts = append(parts, say(n, u.name))
			ms -= n * u.ms
		}
	}
	return strings.Join(parts, " ")
}

// say returns a number of things, in the plural if need be.
func say(n int64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return strconv.FormatInt(n, 10) + " " + thing + "s"
}
