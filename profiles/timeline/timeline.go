// Package timeline keeps when a behaviour occurred, in bounded space, so that counts over sliding windows stay exact.
//
// "At least 3 purchases in 7 days" needs only the three newest purchases, and the newest K of two histories are among
// the newest K of each. So timelines merge like the sets they stand for, in any order and however they were split,
// which is what makes joining and parting profiles cheap.
package timeline

import (
	"math"
	"slices"
)

// MaxKeep is the largest Keep a [Timeline] may have.
const MaxKeep = 1000

// Timeline stands for a multiset of occurrences: how many there were, the first, the last, and the newest ones.
// Times are in Unix milliseconds. The zero value stands for nothing, and keeps no times.
//
// A copy shares Times with its original: change only one of the two, or [Timeline.Clone] first.
type Timeline struct {
	Keep        int     // how many of the newest times are kept, 0 to MaxKeep
	Count       int64   // of all time
	First, Last int64   // of all time; both 0 while Count is 0
	Times       []int64 // the newest min(Keep, Count), newest first; ties are kept; nil if there are none
}

// Clone returns a copy that shares nothing with t.
func (t Timeline) Clone() Timeline {
	t.Times = slices.Clone(t.Times)
	return t
}

// Add takes in one more occurrence, in any order of time.
func (t *Timeline) Add(at int64) {
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

// Merge takes in every occurrence that o stands for. It is commutative and associative, and the same as adding the
// occurrences one by one.
//
// Timelines that keep different numbers of times merge into one that keeps the smaller number, because no more than
// that is known of both. One without occurrences takes the other's Keep.
func (t *Timeline) Merge(o Timeline) {
	switch {
	case o.Count == 0 && t.Count == 0:
		t.Keep = max(t.Keep, o.Keep)
		return
	case o.Count == 0:
		return
	case t.Count == 0:
		*t = o.Clone()
		return
	}
	t.Keep = min(t.keep(), o.keep())
	t.Count = sum(t.Count, o.Count)
	t.First, t.Last = min(t.First, o.First), max(t.Last, o.Last)
	t.Times = newest(t.Keep, t.Times, o.Times)
}

func (t *Timeline) keep() int { return min(max(t.Keep, 0), MaxKeep) }

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
