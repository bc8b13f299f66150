package rule

import (
	"math"
	"sort"
	"strconv"

	"github.com/mubatch/mubatch/profiles/timeline"
)

// count is a range of how often something occurred, both ends included.
type count struct{ min, max int64 }

// unbounded is the max of a count that has none.
const unbounded = math.MaxInt64

func (c count) holds(n int64) bool { return c.min <= n && n <= c.max }

// keep returns how many of the newest occurrences must be known to tell whether c holds in a window: as many as must
// occur, or one more than may.
func (c count) keep() int64 {
	if c.max == unbounded {
		return c.min
	}
	return c.max + 1
}

// window tells whether c holds for the number of times after now - within, and the first instant at which it no longer
// does, or does again. Times are the newest ones, newest first.
func (c count) window(times []int64, within, now int64) (holds bool, until int64) {
	n := after(times, earlier(now, within))
	switch {
	case n > c.max: // too many, until the oldest one too many leaves the window, with those of the same instant
		gone := times[c.max]
		if c.holds(after(times, gone)) {
			return false, later(gone, within)
		}
		return false, never
	case n < c.min: // too few, and they will not become more
		return false, never
	case c.min == 0:
		return true, never
	}
	return true, later(times[c.min-1], within)
}

// after returns how many of times, newest first, are later than at.
func after(times []int64, at int64) int64 {
	return int64(sort.Search(len(times), func(i int) bool { return times[i] <= at }))
}

// earlier returns the instant d before at.
func earlier(at, d int64) int64 {
	if at < dawn+d {
		return dawn
	}
	return at - d
}

// later returns the instant d after at.
func later(at, d int64) int64 {
	if at > never-d {
		return never
	}
	return at + d
}

// appendJSON appends the members that are the canonical form.
func (c count) appendJSON(b []byte) []byte {
	switch {
	case c.min == c.max:
		return strconv.AppendInt(append(b, `"eq":`...), c.min, 10)
	case c.max == unbounded:
		return strconv.AppendInt(append(b, `"gte":`...), c.min, 10)
	case c.min == 0:
		return strconv.AppendInt(append(b, `"lte":`...), c.max, 10)
	}
	b = strconv.AppendInt(append(b, `"gte":`...), c.min, 10)
	return strconv.AppendInt(append(b, `,"lte":`...), c.max, 10)
}

// bounds returns c as bounds.
func (c count) bounds() (b bounds) {
	end := func(n int64) *bound {
		d := timeline.NewInteger(n)
		return &bound{scalar: scalar{kind: '0', text: string(appendDecimal(nil, d))}, value: d}
	}
	if b.lower = end(c.min); c.max < unbounded {
		b.upper = end(c.max)
	}
	if c.min == 0 && c.max < unbounded && c.max > 0 {
		b.lower = nil
	}
	return b
}

// count reads a count from the members that name its bounds.
func (p *parser) count(at string, members []member) count {
	before := len(p.problems)
	c := count{0, unbounded}
	for _, m := range members {
		n, ok := p.occurrences(m.at, m.value)
		if !ok {
			continue
		}
		switch m.name {
		case "gte":
			c.min = n
		case "gt":
			c.min = n + 1
		case "lte":
			c.max = n
		case "lt":
			c.max = n - 1
		case "eq":
			c = count{n, n}
		}
	}
	if p.ends(at, members) && len(p.problems) == before && c.min > c.max {
		p.problem(at, "can never be true")
	}
	return c
}

func (p *parser) occurrences(at string, v []byte) (n int64, ok bool) {
	literal, ok := parseNumber(v)
	if ok {
		n, ok = literal.floor(0)
		ok = ok && literal.sign >= 0 && literal.len() <= max(literal.exp, 0) && n <= MaxCount
	}
	if !ok {
		p.problem(at, "must be a whole number from 0 to %d", MaxCount)
	}
	return n, ok
}
