package rule

import (
	"iter"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/profiles/timeline"
)

// Limits of sequences.
const (
	MaxSequence  = 8   // steps
	SequenceKeep = 100 // how many of the newest occurrences of each step are looked at
)

// sequence is a condition on occurrences one after the other, perhaps with one that does not follow.
type sequence struct {
	steps  []step
	then   *step // what does not follow, within its time or ever; nil if that does not matter
	within int64 // the first occurrence is in a window, in milliseconds; 0: of all time
}

// step is an occurrence in a sequence.
type step struct {
	behaviour int // index in Rule.behaviours
	Behaviour
	within int64 // how long after the step before at most, in milliseconds; 0: however long
}

// link is the last occurrence of a chain so far.
type link struct {
	at     int64
	start  int64 // the latest time at which the first occurrence of such a chain can be
	before int   // index of the link before, in those of the step before
}

// links appends the occurrences of step i with which a chain of the steps so far can end, the oldest first. before are
// those of the step before. Of these the one nearest before an occurrence is also that of which the chain began latest: so
// each needs to look at only one.
func (q *sequence) links(i int, s State, before, links []link) []link {
	step := &q.steps[i]
	times := newestTimes(s.Timeline(step.behaviour))
	next := 0 // in before: the first that is not before at
	for k := len(times) - 1; k >= 0; k-- {
		at := times[k]
		if i == 0 {
			links = append(links, link{at: at, start: at})
			continue
		}
		for next < len(before) && before[next].at < at {
			next++
		}
		if next > 0 && (step.within == 0 || at <= later(before[next-1].at, step.within)) {
			links = append(links, link{at, before[next-1].start, next - 1})
		}
	}
	return links
}

// newestTimes returns the times that are looked at, newest first.
func newestTimes(t timeline.Timeline) []int64 { return t.Times[:min(len(t.Times), SequenceKeep)] }

// interval is from when up to, without, when a chain makes a sequence hold.
type interval struct {
	from, to int64
	last     int // index of the chain's last link
}

// intervals goes through when the chains that end with links make q hold, in the order of their beginnings.
func (q *sequence) intervals(s State, links []link) iter.Seq[interval] {
	return func(yield func(interval) bool) {
		var not []int64 // what must not follow, newest first
		known := int64(dawn)
		if q.then != nil {
			t := s.Timeline(q.then.behaviour)
			if not = newestTimes(t); t.Count > int64(len(not)) && len(not) > 0 {
				known = not[len(not)-1]
			}
		}
		for i, l := range links {
			for len(not) > 0 && not[len(not)-1] <= l.at {
				not = not[:len(not)-1]
			}
			if l.at < known {
				continue
			}
			is := interval{dawn, never, i}
			if q.within > 0 {
				is.to = later(l.start, q.within)
			}
			if q.then != nil {
				end := int64(never)
				if q.then.within > 0 {
					end = later(l.at, q.then.within)
					is.from = later(end, 1)
				}
				if len(not) > 0 && not[len(not)-1] <= end {
					continue
				}
			}
			if is.from < is.to && !yield(is) {
				return
			}
		}
	}
}

func (q *sequence) eval(s State, now int64) (holds bool, until int64) {
	var rows [2][SequenceKeep]link
	var links []link
	for i := range q.steps {
		if links = q.links(i, s, links, rows[i%2][:0]); len(links) == 0 {
			return false, never
		}
	}
	until = now
	for is := range q.intervals(s, links) {
		switch {
		case is.to <= until:
		case is.from <= until:
			until = is.to
		case until == now:
			return false, is.from
		default:
			return true, until
		}
	}
	if until == now {
		return false, never
	}
	return true, until
}

// chain returns the times of the occurrences that make q hold the longest.
func (q *sequence) chain(s State, now int64) []int64 {
	all := make([][]link, len(q.steps))
	for i := range q.steps {
		var before []link
		if i > 0 {
			before = all[i-1]
		}
		all[i] = q.links(i, s, before, nil)
	}
	found := interval{to: now}
	for is := range q.intervals(s, all[len(all)-1]) {
		if is.from <= now && is.to > found.to {
			found = is
		}
	}
	if found.to == now {
		return nil
	}
	times := make([]int64, len(all))
	for i, at := len(all)-1, found.last; i >= 0; i-- {
		times[i], at = all[i][at].at, all[i][at].before
	}
	return times
}

func (q *sequence) explain(s State, now int64, _ string, x *Explanation) {
	x.Kind = "sequence"
	for i := range q.steps {
		x.Behaviours = append(x.Behaviours, q.steps[i].behaviour)
	}
	if q.then != nil {
		x.Behaviours = append(x.Behaviours, q.then.behaviour)
	}
	slices.Sort(x.Behaviours)
	x.Behaviours = slices.Compact(x.Behaviours)
	if q.within > 0 {
		x.From = time.UnixMilli(now - q.within + 1).UTC()
	}
	if times := q.chain(s, now); times != nil {
		b := []byte{'['}
		for i, at := range times {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendMoment(b, at)
		}
		x.Observed = jsontext.Value(append(b, ']'))
	}
}

// sequence reads steps that follow one another.
func (p *parser) sequence(at string, v []byte) node {
	q := &sequence{}
	before := len(p.problems)
	var stepsAt string
	for _, m := range p.members(at, v, "sequence", "then_not", "within") {
		switch m.name {
		case "sequence":
			stepsAt = m.at
			for i, e := range p.elements(m.at, m.value, MaxSequence) {
				at := child(m.at, strconv.Itoa(i))
				s := p.step(at, e)
				if i == 0 && s.within > 0 {
					p.problem(child(at, "within"), "must be left out: there is no step before the first")
				}
				q.steps = append(q.steps, s)
			}
		case "then_not":
			s := p.step(m.at, m.value)
			q.then = &s
		case "within":
			q.within = p.duration(m.at, m.value)
		}
	}
	switch {
	case len(p.problems) > before:
	case len(q.steps) == 0:
		p.problem(stepsAt, "must have at least one step")
	case len(q.steps) == 1 && q.then == nil:
		p.problem(stepsAt, "must have at least two steps, or one with then_not")
	}
	return q
}

func (p *parser) step(at string, v []byte) (s step) {
	if !p.visit(at) {
		return s
	}
	s.Keep = SequenceKeep
	var named bool
	for _, m := range p.members(at, v, "event", "where", "within") {
		switch m.name {
		case "event":
			s.Event, named = p.name(m.at, m.value), true
		case "where":
			s.Where = p.where(m.at, m.value)
		case "within":
			s.within = p.duration(m.at, m.value)
		}
	}
	if !named && v[0] == '{' {
		p.problem(at, "must have event")
	}
	return s
}
