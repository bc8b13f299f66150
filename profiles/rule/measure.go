package rule

import (
	"bytes"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/profiles/timeline"
)

// aggregate is what many occurrences are made one value by.
type aggregate uint8

const (
	byCount aggregate = iota
	bySum
	byAvg
	byMin
	byMax
	byDistinct
	byFirst
	byLast
)

var aggregates = [...]struct {
	name string
	kind timeline.Kind
	of   string // in English, what it is of the property
}{
	byCount:    {"count", timeline.Times, "number of"},
	bySum:      {"sum", timeline.Sum, "sum of"},
	byAvg:      {"avg", timeline.Sum, "average"},
	byMin:      {"min", timeline.Min, "smallest"},
	byMax:      {"max", timeline.Max, "largest"},
	byDistinct: {"distinct", timeline.Distinct, "number of different values of"},
	byFirst:    {"first", timeline.First, "first"},
	byLast:     {"last", timeline.Last, "last"},
}

func (a aggregate) String() string { return aggregates[a].name }

func parseAggregate(name string) (a aggregate, ok bool) {
	for a := range aggregates {
		if aggregates[a].name == name {
			return aggregate(a), true
		}
	}
	return 0, false
}

// aggregateNames returns the names of all aggregates.
func aggregateNames() []string {
	names := make([]string, len(aggregates))
	for a := range aggregates {
		names[a] = aggregates[a].name
	}
	return names
}

// measure is an aggregate of a property, or of the occurrences themselves if that is empty.
type measure struct {
	aggregate aggregate
	property  string
}

// behaviour returns b with what has to be kept of it to measure it in a window, which is of all time if within is 0. If
// the window is not coarse, count needs the newest times, of which Keep is to be said.
func (m measure) behaviour(b Behaviour, within int64, coarse bool) Behaviour {
	b.tally, b.property = m.aggregate, m.property
	switch m.aggregate {
	case byCount:
		coarse = coarse && within > 0
	case byAvg:
		b.tally = bySum
		fallthrough
	case bySum, byMin, byMax:
		coarse = within > 0
	case byFirst:
		if coarse = within > 0; !coarse && m.property == "" {
			b.tally = byCount
		}
	case byLast:
		if coarse = false; m.property == "" {
			b.tally = byCount
		}
	case byDistinct:
		coarse = false
	}
	if coarse {
		b.span, b.resolution = within, resolution(within)
	}
	return b
}

// from returns the first instant that counts at now.
func (m measure) from(within, resolution, now int64) int64 {
	if resolution == 0 {
		return now - within + 1
	}
	return floor(now-within, resolution)
}

// leaves returns the instant from which on a bucket no longer counts.
func leaves(t timeline.Timeline, b timeline.Bucket, within int64) int64 {
	switch {
	case within == 0:
		return never
	case t.Width == 0: // the last one
		return later(b.At, within)
	}
	return later((b.Slot+1)*t.Width, within)
}

// slide tells see what the buckets in a window come to, and when the oldest of them leaves it: first of the newest bucket
// alone, then with each older one, at last all that are in the window at now. If there are none, see is not called.
func slide(t timeline.Timeline, within, now int64, see func(b timeline.Bucket, until int64)) {
	var all timeline.Bucket
	for i := len(t.Buckets) - 1; i >= 0; i-- {
		b := t.Buckets[i]
		until := leaves(t, b, within)
		if until <= now {
			return
		}
		if i == len(t.Buckets)-1 {
			all = b
		} else {
			all = t.Kind.Join(b, all)
		}
		see(all, until)
	}
}

// amount returns what a bucket comes to, as a sum and the number by which it is to be divided.
func (m measure) amount(b timeline.Bucket) (total timeline.Decimal, by int64) {
	switch m.aggregate {
	case byCount:
		return timeline.NewInteger(b.Count), 1
	case byAvg:
		return b.Value, b.Count
	}
	return b.Value, 1
}

// extremes returns the buckets whose first, or last, is the one after the other the first, or last, occurrence in a window
// from now on.
func (m measure) extremes(t timeline.Timeline, within, now int64) []timeline.Bucket {
	if t.Kind == timeline.Times {
		switch {
		case t.Count == 0:
			return nil
		case m.aggregate == byFirst:
			return []timeline.Bucket{{At: t.First}}
		case within > 0 && later(t.Last, within) <= now:
			return nil
		}
		return []timeline.Bucket{{At: t.Last}}
	}
	for i, b := range t.Buckets {
		if leaves(t, b, within) > now {
			return t.Buckets[i:]
		}
	}
	return nil
}

// value returns what m comes to at now, in JSON, and until when it does. It is nil if it is nothing.
func (m measure) value(t timeline.Timeline, within, now int64) (v jsontext.Value, until int64) {
	switch {
	case m.aggregate == byFirst || m.aggregate == byLast:
		return m.extreme(t, within, now)
	case m.aggregate == byDistinct:
		n := int64(len(t.Times))
		if until = never; within > 0 {
			if n = after(t.Times, earlier(now, within)); n > 0 {
				until = later(t.Times[n-1], within)
			}
		}
		return appendDecimal(nil, timeline.NewInteger(n)), until
	case m.aggregate == byCount && t.Kind == timeline.Times:
		return appendDecimal(nil, timeline.NewInteger(t.Count)), never
	}
	var total timeline.Decimal
	var by int64
	until = never
	slide(t, within, now, func(b timeline.Bucket, leaves int64) {
		before, byBefore := total, by
		if total, by = m.amount(b); by != byBefore || !total.Equal(before) {
			until = leaves
		}
	})
	switch {
	case by > 0 && m.aggregate == byAvg:
		return appendDecimal(nil, total.Divide(by, AvgPlaces)), until
	case by > 0 || m.aggregate == byCount || m.aggregate == bySum:
		return appendDecimal(nil, total), until
	}
	return nil, never
}

// AvgPlaces is how many digits after the point an average has at most when it is told. It is compared exactly.
const AvgPlaces = 12

func (m measure) extreme(t timeline.Timeline, within, now int64) (v jsontext.Value, until int64) {
	until = never
	for i, b := range m.extremes(t, within, now) {
		written := jsontext.Value(b.Text)
		if m.property == "" {
			written = appendMoment(nil, b.At)
		}
		if i > 0 && !bytes.Equal(v, written) {
			break
		}
		v, until = written, leaves(t, b, within)
	}
	return v, until
}

// look tells fold of every value that a path leads to in properties: each string, number, true and false, those in an
// array one by one.
func look(properties jsontext.Value, path string, fold func(v []byte)) {
	scalar := func(v []byte) {
		if v[0] != '{' && v[0] != '[' && v[0] != 'n' {
			fold(v)
		}
	}
	p := probe{Condition: &Condition{}, leaf: func(v []byte) {
		if v[0] != '[' {
			scalar(v)
			return
		}
		s := inside(v)
		for e := s.next(); e != nil; e = s.next() {
			scalar(e)
		}
	}}
	p.search(properties, path)
}

// Limits of the numbers that are added up and compared. They keep sums exact in bounded space.
const (
	MaxAmountDigits = 34
	MaxAmountPower  = 34 // below 10^34, and at least 10^-34 unless it is 0
)

// amountOf returns the number that v is, if it is one that is measured.
func amountOf(v []byte) (d timeline.Decimal, ok bool) {
	n, ok := parseNumber(v)
	if !ok || n.len() > MaxAmountDigits || n.exp > MaxAmountPower || n.exp <= -MaxAmountPower {
		return timeline.Decimal{}, false
	}
	return n.decimal(), true
}

// MaxText is how many bytes a string may have to be a first or last value.
const MaxText = 512

// canonical returns a string, number, true or false as it is always written, and whether that is short enough to be kept.
func canonical(v []byte) (written []byte, short bool) {
	switch v[0] {
	case '"':
		s := text(v)
		return appendText(nil, string(s)), len(s) <= MaxText
	case 't', 'f':
		return v, true
	}
	n, _ := parseNumber(v)
	written = n.append(nil)
	return written, len(written) <= MaxText
}
