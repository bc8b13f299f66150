package mapping

import (
	"errors"
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // zones are to be the same wherever this runs
)

// bindDate returns what reads times of a format: unix, unix_ms, or a pattern such as DD.MM.YYYY HH:mm, in a time zone (UTC)
// unless the text has its offset. Without a format it is a time as in RFC 3339, or a date.
func bindDate(args []value) (func(value) (value, error), error) {
	format, zone := "", time.UTC
	if len(args) > 0 {
		format = args[0].text
	}
	if len(args) > 1 {
		var err error
		if zone, err = time.LoadLocation(args[1].text); err != nil || args[1].text == "Local" {
			return nil, errors.New("knows no such time zone; write one such as Europe/Berlin")
		}
	}
	switch format {
	case "":
		return func(v value) (value, error) { return readTime(v, zone, isoLayouts...) }, nil
	case "unix":
		return func(v value) (value, error) { return readUnix(v, 0) }, nil
	case "unix_ms":
		return func(v value) (value, error) { return readUnix(v, -3) }, nil
	}
	layout, err := layoutOf(format)
	if err != nil {
		return nil, err
	}
	return func(v value) (value, error) { return readTime(v, zone, layout) }, nil
}

var isoLayouts = []string{
	time.RFC3339, "2006-01-02T15:04:05Z0700", "2006-01-02T15:04:05", "2006-01-02 15:04:05Z07:00", "2006-01-02 15:04:05 Z0700",
	"2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02 15:04", "2006-01-02",
}

func readTime(v value, zone *time.Location, layouts ...string) (value, error) {
	s, err := v.characters()
	if err != nil {
		return value{}, err
	}
	if s = strings.TrimSpace(s); s == "" {
		return value{}, nil
	}
	for _, layout := range layouts {
		if t, err := time.ParseInLocation(layout, s, zone); err == nil {
			return timeValue(t)
		}
	}
	return value{}, errors.New("is no time of the format")
}

// readUnix takes a number of seconds, or of their thousandths if exponent is -3, since 1970.
func readUnix(v value, exponent int) (value, error) {
	d, s, err := v.decimal()
	if err != nil || s == "" {
		return value{}, err
	}
	ms := d.shift(exponent + 3).whole()
	if len(ms.digits)+ms.exponent > 15 {
		return value{}, errors.New("is no time: it is too large a number")
	}
	var n int64
	if _, err := fmt.Sscan(ms.String(), &n); err != nil {
		return value{}, errors.New("is no time")
	}
	return timeValue(time.UnixMilli(n))
}

func timeValue(t time.Time) (value, error) {
	if y := t.UTC().Year(); y < 1 || y > 9999 {
		return value{}, errors.New("is a time that cannot be written")
	}
	return textOf(formatTime(t)), nil
}

// tokens are what a pattern is made of, the longer before the shorter.
var tokens = []struct{ pattern, layout string }{
	{"YYYY", "2006"},
	{"YY", "06"},
	{"MMMM", "January"},
	{"MMM", "Jan"},
	{"MM", "01"},
	{"M", "1"},
	{"DD", "02"},
	{"D", "2"},
	{"HH", "15"},
	{"hh", "03"},
	{"h", "3"},
	{"mm", "04"},
	{"m", "4"},
	{"ss", "05"},
	{"s", "5"},
	{".SSS", ".999"},
	{"A", "PM"},
	{"Z", "Z07:00"},
}

// layoutOf turns a pattern into a layout of package time. Letters must be tokens, but for the T between date and time.
func layoutOf(pattern string) (string, error) {
	var b strings.Builder
next:
	for rest := pattern; rest != ""; {
		for _, t := range tokens {
			if after, ok := strings.CutPrefix(rest, t.pattern); ok {
				b.WriteString(t.layout)
				rest = after
				continue next
			}
		}
		if c := rest[0]; c != 'T' && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_') {
			return "", errors.New("knows no such format; write unix, unix_ms, or a pattern of YYYY MM DD HH mm ss .SSS Z, MMM, hh and A")
		}
		b.WriteByte(rest[0])
		rest = rest[1:]
	}
	return b.String(), nil
}
