package rule

import (
	"math"
	"sort"
	"strconv"
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
	n := after(times, now-within)
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

// later returns the instant d after at.
func later(at, d int64) int64 {
	if at > never-d {
		return never
	}
	return at + d
}

func (c count) appendJSON(b []byte) []byte {
	switch {
	case c.min == c.max:
		b = strconv.AppendInt(append(b, `{"eq":`...), c.min, 10)
	case c.max == unbounded:
		b = strconv.AppendInt(append(b, `{"gte":`...), c.min, 10)
	case c.min == 0:
		b = strconv.AppendInt(append(b, `{"lte":`...), c.max, 10)
	default:
		b = strconv.AppendInt(append(b, `{"gte":`...), c.min, 10)
		b = strconv.AppendInt(append(b, `,"lte":`...), c.max, 10)
	}
	return append(b, '}')
}
