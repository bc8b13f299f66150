// Package timeline keeps what is needed of a behaviour's occurrences, in bounded space, so that what rules say of sliding
// windows stays exact.
//
// "At least 3 purchases in 7 days" needs only the three newest purchases, and the newest K of two histories are among
// the newest K of each. "More than 500 € in 30 days" needs sums over short stretches of time, and the sums of two histories
// add up. So timelines merge like the sets they stand for, in any order and however they were split, which is what makes
// joining and parting profiles cheap.
package timeline

import (
	"cmp"
	"math"
	"slices"
)

// Limits of Keep.
const (
	MaxKeep    = 1000 // of times and of different values
	MaxBuckets = 1100 // of buckets
)

// Kind is what a timeline keeps.
type Kind uint8

// The kinds of timelines.
const (
	Times    Kind = iota // the newest times, and of all time how many there were, the first and the last
	Sum                  // how many numbers there were, and their sum
	Min                  // the smallest number
	Max                  // the largest number
	First                // the earliest time, and what was then
	Last                 // the latest time, and what was then
	Distinct             // the values that came last, each once, and the last time of each
)

// Timeline stands for a multiset of occurrences, and holds of them what its kind says. Times are in Unix milliseconds. The
// zero value is of the kind Times, stands for nothing and keeps no times.
//
// Of the kinds Sum, Min, Max, First and Last there is one value for all time or, if Width is not 0, one for each bucket of
// that many milliseconds in which something occurred. Then buckets are kept as long as they are among the Keep slots that
// end with the newest bucket's.
//
// A copy shares Times, Hashes and Buckets with its original: change only one of the two, or [Timeline.Clone] first.
type Timeline struct {
	Kind  Kind
	Keep  int   // how many of the newest times, values or slots are kept
	Width int64 // of a bucket, in milliseconds; 0: one bucket of all time

	Count       int64    // of all time: how often something was added
	First, Last int64    // of all time; both 0 while Count is 0, and of other kinds than Times
	Times       []int64  // the newest min(Keep, Count), newest first; ties are kept; nil if there are none
	Hashes      []uint64 // of Distinct: of which value each of Times is the last; the higher hash first if times are equal
	Buckets     []Bucket // of Sum, Min, Max, First and Last: the oldest first
}

// Clone returns a copy that shares nothing with t that ever changes.
func (t Timeline) Clone() Timeline {
	t.Times = slices.Clone(t.Times)
	t.Hashes = slices.Clone(t.Hashes)
	t.Buckets = slices.Clone(t.Buckets)
	return t
}

// Add takes in one more occurrence, in any order of time, of which only the time matters: it is one time more, or one more
// that adds nothing to a sum, or the first or last one of a value that is empty. It does nothing to other kinds.
func (t *Timeline) Add(at int64) {
	switch t.Kind {
	case Times:
		t.addTime(at)
	case Sum:
		t.add(Bucket{Slot: t.slot(at), Count: 1})
	case First, Last:
		t.add(Bucket{Slot: t.slot(at), At: at})
	}
}

// AddNumber takes in a number, in any order of time. It does something only to the kinds Sum, Min and Max.
func (t *Timeline) AddNumber(at int64, n Decimal) {
	switch t.Kind {
	case Sum:
		t.add(Bucket{Slot: t.slot(at), Count: 1, Value: n})
	case Min, Max:
		t.add(Bucket{Slot: t.slot(at), Value: n})
	}
}

// AddValue takes in a value, in any order of time. Values are the same if they are written in the same way. It does
// something only to the kinds First, Last and Distinct.
func (t *Timeline) AddValue(at int64, value []byte) {
	switch t.Kind {
	case First, Last:
		t.add(Bucket{Slot: t.slot(at), At: at, Text: string(value)})
	case Distinct:
		t.addHash(at, hash(value))
	}
}

// Merge takes in every occurrence that o stands for. It is commutative and associative, and the same as adding the
// occurrences one by one.
//
// Timelines that keep different numbers merge into one that keeps the smaller number, because no more than that is known
// of both. One without occurrences takes the other's Kind, Keep and Width. Timelines of different kinds or widths stand
// for different things and are not to be merged; if they are, the one whose kind, then width, is greater stays.
func (t *Timeline) Merge(o Timeline) {
	shape := cmp.Or(cmp.Compare(t.Kind, o.Kind), cmp.Compare(t.Width, o.Width))
	switch {
	case o.Count == 0 && t.Count == 0 && shape == 0:
		t.Keep = max(t.Keep, o.Keep)
		return
	case o.Count == 0 && t.Count > 0:
		return
	case t.Count == 0 && o.Count > 0, shape < 0:
		*t = o.Clone()
		return
	case shape > 0:
		return
	}
	alike := t.keep() == o.keep()
	t.Keep = min(t.keep(), o.keep())
	switch {
	case t.Kind == Times && o.Count == 1 && alike:
		t.addTime(o.Last)
		return
	case t.Kind == Times:
		t.First, t.Last = min(t.First, o.First), max(t.Last, o.Last)
		t.Times = newest(t.Keep, t.Times, o.Times)
	case t.Kind == Distinct:
		t.mergeHashes(o)
	default:
		t.mergeBuckets(o.Buckets)
	}
	t.Count = sum(t.Count, o.Count)
}

func (t *Timeline) keep() int {
	if t.Width > 0 {
		return min(max(t.Keep, 0), MaxBuckets)
	}
	return min(max(t.Keep, 0), MaxKeep)
}

func (t *Timeline) addTime(at int64) {
	if t.Count == 0 {
		t.First, t.Last = at, at
	}
	t.First, t.Last = min(t.First, at), max(t.Last, at)
	t.Count = sum(t.Count, 1)

	keep := t.keep()
	if len(t.Times) == keep {
		if keep == 0 || at <= t.Times[keep-1] {
			return
		}
		t.Times = t.Times[:keep-1]
	}
	i := len(t.Times) // events mostly arrive in order, so the place is usually found at once or not far
	if i > 0 && at >= t.Times[0] {
		i = 0
	} else {
		for i > 0 && t.Times[i-1] < at {
			i--
		}
	}
	t.Times = slices.Insert(t.Times, i, at)
}

// newest returns the first keep of a and b in descending order, both of which are descending, or nil if that is none.
// What it returns may be a part of a, and never of b.
func newest(keep int, a, b []int64) []int64 {
	if keep == 0 {
		return nil
	}
	if len(a) >= keep && (len(b) == 0 || b[0] <= a[keep-1]) {
		return a[:keep]
	}
	times := make([]int64, 0, min(keep, len(a)+len(b)))
	for len(times) < cap(times) {
		if len(b) == 0 || len(a) > 0 && a[0] >= b[0] {
			times, a = append(times, a[0]), a[1:]
		} else {
			times, b = append(times, b[0]), b[1:]
		}
	}
	return times
}

// sum adds counts, and stays at the largest one rather than overflow.
func sum(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}
