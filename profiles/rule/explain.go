package rule

import (
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// Explanation says of one condition of a rule whether it holds, and why.
type Explanation struct {
	Pointer    string         // to the condition in the rule as it is printed: "#/all/1"
	Kind       string         // all, any, not, trait, event, sequence, segment or consent
	Text       string         // the condition in English, as in [Rule.Describe]
	Holds      bool           // at the moment asked for
	Until      time.Time      // when that may change by itself; zero: never
	Observed   jsontext.Value // what was found: the trait's value, the count, the sum, …; nil: nothing
	Behaviours []int          // what it looked at, as indexes in [Rule.Behaviours]
	From       time.Time      // the first instant that it looked at; zero: all time
	Segment    string         // the key of the segment that it refers to
	Nodes      []*Explanation // of a group, its conditions
}

// Explain says for each condition of r whether it holds at the time now, and why. As for [Rule.Eval] no membership of another
// segment changes by itself; [Explanation.Refer] is for those who know better.
func (r *Rule) Explain(s State, now time.Time) *Explanation {
	return explain(r.root, s, now.UnixMilli(), "")
}

// Refer makes every Until follow those of the segments that are referred to: due says of a key until when the membership
// stays as it is by itself, zero if for ever.
func (x *Explanation) Refer(due func(key string) time.Time) {
	if x.Kind == "segment" {
		x.Until = due(x.Segment)
		return
	}
	for _, n := range x.Nodes {
		n.Refer(due)
	}
	switch x.Kind {
	case "not":
		x.Until = x.Nodes[0].Until
	case "all", "any":
		// One condition decides that not all hold, or that any does: as long as the last of such stays. Otherwise the
		// first to change may change the whole.
		decided := x.Holds == (x.Kind == "any")
		var of []time.Time
		for _, n := range x.Nodes {
			if !decided || n.Holds == x.Holds {
				of = append(of, n.Until)
			}
		}
		if decided {
			x.Until = slices.MaxFunc(of, laterOrNever)
		} else {
			x.Until = slices.MinFunc(of, laterOrNever)
		}
	}
}

// laterOrNever orders moments, never being the last of them.
func laterOrNever(a, b time.Time) int {
	if a.IsZero() || b.IsZero() {
		return b.Compare(a)
	}
	return a.Compare(b)
}

func explain(n node, s State, now int64, at string) *Explanation {
	holds, until := n.eval(s, now)
	x := &Explanation{Pointer: fragment(at), Text: n.describe(false), Holds: holds, Until: instant(until)}
	n.explain(s, now, at, x)
	return x
}

func (g group) explain(s State, now int64, at string, x *Explanation) {
	x.Kind = "any"
	if g.all {
		x.Kind = "all"
	}
	for i, n := range g.nodes {
		x.Nodes = append(x.Nodes, explain(n, s, now, child(child(at, x.Kind), strconv.Itoa(i))))
	}
}

func (n not) explain(s State, now int64, at string, x *Explanation) {
	x.Kind = "not"
	x.Nodes = []*Explanation{explain(n.node, s, now, child(at, "not"))}
}

func (t *trait) explain(s State, _ int64, _ string, x *Explanation) {
	x.Kind = "trait"
	var found []byte
	n := 0
	p := probe{Condition: &Condition{}, leaf: func(v []byte) {
		if n++; n > 1 {
			found = append(found, ',')
		}
		found = append(found, v...)
	}}
	for _, at := range t.places {
		if v, ok := s.Trait(at.name); ok {
			p.search(v, at.path)
		}
	}
	switch {
	case n == 1:
		x.Observed = found
	case n > 1:
		x.Observed = append(append([]byte{'['}, found...), ']')
	}
}
