package rule

import (
	"math"
	"strings"
	"time"
)

// period is what lies from one instant up to, without, another. What is open has the least or the greatest instant.
type period struct{ from, to int64 }

// dawn is earlier than everything.
const dawn = math.MinInt64

func (p *period) has(at int64) bool { return p.from <= at && at < p.to }

func (p *period) appendJSON(b []byte) []byte {
	b = append(b, '{')
	if p.from != dawn {
		b = appendDate(append(b, `"from":`...), p.from)
	}
	if p.from != dawn && p.to != never {
		b = append(b, ',')
	}
	if p.to != never {
		b = appendDate(append(b, `"to":`...), p.to)
	}
	return append(b, '}')
}

// say returns when, as what follows the things that happened then.
func (p *period) say() string {
	from, to := sayDate(p.from), sayDate(p.to)
	switch {
	case p.to == never:
		return " since " + from
	case p.from == dawn:
		return " before " + to
	}
	return " from " + from + " up to " + to
}

func sayDate(ms int64) string { return strings.Trim(string(appendDate(nil, ms)), `"`) }

// period reads what is given as between.
func (p *parser) period(at string, v []byte) *period {
	before := len(p.problems)
	is := &period{dawn, never}
	for _, m := range p.members(at, v, "from", "to") {
		switch m.name {
		case "from":
			is.from = p.date(m.at, m.value)
		case "to":
			is.to = p.date(m.at, m.value)
		}
	}
	switch {
	case len(p.problems) > before:
	case is.from == dawn && is.to == never:
		p.problem(at, "must have from or to")
	case is.from >= is.to:
		p.problem(at, "is empty: from must be before to")
	}
	return is
}

const (
	second = int64(time.Second / time.Millisecond)
	minute = 60 * second
	hour   = 60 * minute
	day    = 24 * hour
)

// resolutions of windows of which more is to be told than what is newest in them.
var resolutions = []int64{
	1 * second, 2 * second, 5 * second, 10 * second, 15 * second, 30 * second,
	1 * minute, 2 * minute, 5 * minute, 10 * minute, 15 * minute, 30 * minute,
	1 * hour, 2 * hour, 3 * hour, 6 * hour, 12 * hour,
	1 * day, 2 * day, 7 * day,
}

// windowBuckets is into how many steps of its resolution a window is divided at most.
const windowBuckets = 720

// resolution returns the resolution of a window.
func resolution(within int64) int64 {
	for _, r := range resolutions {
		if r*windowBuckets >= within {
			return r
		}
	}
	return resolutions[len(resolutions)-1] // of no window that is allowed
}

// aheadMost is how far an event may be dated after the present, in milliseconds.
const aheadMost = 5 * minute

// slots returns how many slots of its resolution must be kept of a window, the newest one included. The present may be as
// early as aheadMost before what is newest.
func slots(within, resolution int64) int {
	return int((within+aheadMost+resolution-1)/resolution) + 1
}

// floor returns the last multiple of width that is not after at.
func floor(at, width int64) int64 {
	rest := at % width
	if rest < 0 {
		rest += width
	}
	return at - rest
}
