package brute

import (
	"math"
	"slices"
)

// newest is how many of the newest occurrences of each step of a sequence are looked at.
const newest = 100

// sequence decides whether somebody did one thing after another, in time, and then did not do yet another.
//
// What is asked of a chain of occurrences is only asked of neighbours, of the first and of the last. So it is enough to
// know, step by step, which occurrences some chain reaches.
func (q question) sequence(rule map[string]any) bool {
	var reached []int64
	for i, step := range rule["sequence"].([]any) {
		step := step.(map[string]any)
		times := q.newestTimes(step)
		if i == 0 {
			reached = q.started(times, rule)
			continue
		}
		reached = after(reached, times, step)
	}
	thenNot, ok := rule["then_not"].(map[string]any)
	if !ok {
		return len(reached) > 0
	}
	return slices.ContainsFunc(q.known(reached, thenNot), q.stayedAway(thenNot))
}

// newestTimes returns when the newest occurrences were, earliest first.
func (q question) newestTimes(node map[string]any) (times []int64) {
	for _, e := range q.occurrences(node) {
		times = append(times, e.At)
	}
	slices.Sort(times)
	return times[max(0, len(times)-newest):]
}

// started returns the times at which a chain may have begun.
func (q question) started(times []int64, rule map[string]any) (in []int64) {
	for _, t := range times {
		if within, ok := rule["within"].(string); !ok || t > q.now-duration(within) {
			in = append(in, t)
		}
	}
	return in
}

// after returns which of times come after one of the times reached, and soon enough.
func after(reached, times []int64, step map[string]any) (next []int64) {
	gap := int64(math.MaxInt64)
	if within, ok := step["within"].(string); ok {
		gap = duration(within)
	}
	for _, t := range times {
		if slices.ContainsFunc(reached, func(before int64) bool { return before < t && t-before <= gap }) {
			next = append(next, t)
		}
	}
	return next
}

// known returns the ends of chains of which it is known what followed: nobody can tell of what is not looked at any more.
func (q question) known(ends []int64, thenNot map[string]any) []int64 {
	if len(q.occurrences(thenNot)) <= newest {
		return ends
	}
	oldest := q.newestTimes(thenNot)[0]
	return slices.DeleteFunc(ends, func(end int64) bool { return end < oldest })
}

// stayedAway tells of the end of a chain whether what must not follow did not, and it is too late for it now.
func (q question) stayedAway(thenNot map[string]any) func(end int64) bool {
	times := q.newestTimes(thenNot)
	within, ok := thenNot["within"].(string)
	if !ok {
		return func(end int64) bool { return !slices.ContainsFunc(times, func(t int64) bool { return t > end }) }
	}
	return func(end int64) bool {
		until := end + duration(within)
		return q.now > until && !slices.ContainsFunc(times, func(t int64) bool { return end < t && t <= until })
	}
}
