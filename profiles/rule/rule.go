// Package rule is the language of segments: it reads rules, prints them, says them in English, and tells who fits.
//
//	{"all": [
//	  {"trait": "country", "op": "in", "value": ["DE", "FR"]},
//	  {"event": "Order Completed", "where": [{"property": "revenue", "op": "gte", "value": 50}],
//	   "count": {"gte": 2}, "within": "30d"},
//	  {"not": {"event": "Unsubscribed", "within": "90d"}}
//	]}
//
// A rule speaks of traits, and of behaviours: an event with a filter on its properties. Who keeps profiles asks a rule
// for its [Rule.Behaviours], keeps a [timeline.Timeline] for each, and asks [Rule.Eval] who fits and until when.
//
// # Values
//
// A trait or property is named by its path: "address.city", "products.0.sku". A step into an array is an index, or goes
// into every object of the array: "products.sku" leads to each product's sku. A name that itself holds dots is found,
// too. Where a path leads to several values, or to an array of them, a condition holds if it holds for any one.
// The negative operators neq, not_in, not_contains and not_exists are exactly the opposite of eq, in, contains and
// exists; so they hold for what is absent. null is the same as absent.
//
// Numbers are compared exactly, of whatever size. A string is never equal to a number. The operators on dates read
// strings of RFC 3339 or of the form YYYY-MM-DD, which is midnight UTC, and numbers: Unix seconds if they are smaller
// than 100,000,000,000 (the year 5138), otherwise Unix milliseconds (from March 1973 on), cut to the millisecond.
//
// Durations are whole numbers of w, d, h, m and s, as in "30d" and "1d12h". A day is 24 hours, always.
package rule

import (
	"math"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/profiles/timeline"
)

// Limits of what [Parse] accepts.
const (
	MaxSize     = 64 << 10 // bytes, as given and as printed
	MaxDepth    = 16       // of conditions within conditions
	MaxNodes    = 500      // conditions, those in where included
	MaxIn       = 1000     // values of one in or not_in
	MaxName     = 512      // bytes of an event's name or of a path
	MaxSteps    = 32       // of a path
	MaxDuration = 3653 * 24 * time.Hour
	MaxCount    = 1_000_000_000
)

// Rule is one parsed rule. It comes from [Parse], never changes, and may be used by many at once.
type Rule struct {
	root       node
	behaviours []Behaviour
	traits     []string
	consents   []string
	segments   []string
}

// State is what [Rule.Eval] may know of a profile.
type State interface {
	// Trait returns the value of a top-level trait.
	Trait(name string) (jsontext.Value, bool)

	// Timeline returns the occurrences of the behaviour at index i of [Rule.Behaviours], of which it must keep
	// at least as many as the behaviour says.
	Timeline(i int) timeline.Timeline

	// Consent returns the latest decision on a purpose, and whether there has been one.
	Consent(purpose string) (granted, known bool)

	// Segment tells whether the profile is a member of the segment with this key.
	Segment(key string) bool
}

// Behaviours returns the distinct behaviours that r counts, in the order in which it first names them. The caller must
// not change what is returned.
func (r *Rule) Behaviours() []Behaviour { return r.behaviours }

// Traits returns the names of the top-level traits that r reads, sorted. Because names may hold dots, a path counts
// with each of its beginnings: "address.city" may be in the trait "address" or in the trait "address.city". The
// caller must not change what is returned.
func (r *Rule) Traits() []string { return r.traits }

// Consents returns the purposes of whose decisions r asks, sorted. The caller must not change what is returned.
func (r *Rule) Consents() []string { return r.consents }

// Segments returns the keys of the segments that r refers to, sorted. The caller must not change what is returned.
func (r *Rule) Segments() []string { return r.segments }

// Eval tells whether r holds at the time now, and until when that is sure if nothing else happens: the answer is the
// same at every instant from now up to, but without, until. A zero until means for ever. Otherwise until lies after now
// and the answer then is to be asked for again.
//
// Time counts in milliseconds. An occurrence at t is within a window of length d from t on, up to but without t + d.
// Occurrences dated after now count as well, so that a count only falls as time passes.
func (r *Rule) Eval(s State, now time.Time) (holds bool, until time.Time) {
	holds, end := r.root.eval(s, now.UnixMilli())
	return holds, instant(end)
}

// instant returns the end of an answer, zero if there is none.
func instant(ms int64) time.Time {
	if ms == never {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// never is the instant that no answer changes at any more.
const never = math.MaxInt64

// node is one condition of a rule.
type node interface {
	// eval tells whether the condition holds at now, and the first instant after now at which that may change.
	eval(s State, now int64) (holds bool, until int64)

	// appendJSON appends the canonical form.
	appendJSON(b []byte) []byte

	// describe returns what is true of the profiles that fit, or of those that do not.
	describe(negated bool) string

	// explain completes an explanation with what eval looked at. The condition is at the pointer at.
	explain(s State, now int64, at string, x *Explanation)
}

// group is all or any of its nodes.
type group struct {
	all   bool
	nodes []node
}

// One node that fails settles all, and one that holds settles any, for as long as it goes on to. If several do, the one
// that does so longest counts.
func (g group) eval(s State, now int64) (holds bool, until int64) {
	settled, until := false, never
	for _, n := range g.nodes {
		holds, end := n.eval(s, now)
		switch settles := holds != g.all; {
		case settles && settled:
			until = max(until, end)
		case settles:
			settled, until = true, end
		case !settled:
			until = min(until, end)
		}
		if settled && until == never {
			break
		}
	}
	return settled != g.all, until
}

// not is the opposite of its node.
type not struct{ node node }

func (n not) eval(s State, now int64) (holds bool, until int64) {
	holds, until = n.node.eval(s, now)
	return !holds, until
}

// trait is a condition on a trait.
type trait struct {
	Condition
	places []place
}

// place is a top-level trait and the path from there on.
type place struct{ name, path string }

func newTrait(c Condition) *trait {
	t := &trait{Condition: c}
	for i := range len(c.path) {
		if c.path[i] == '.' {
			t.places = append(t.places, place{c.path[:i], c.path[i+1:]})
		}
	}
	t.places = append(t.places, place{name: c.path})
	return t
}

func (t *trait) eval(s State, now int64) (holds bool, until int64) {
	p := probe{Condition: &t.Condition, now: now, until: never}
	for _, at := range t.places {
		if v, ok := s.Trait(at.name); ok && p.search(v, at.path) {
			break
		}
	}
	return p.held != t.op.negative(), p.until
}

// event is a condition on how often a behaviour occurred.
type event struct {
	behaviour int // index in Rule.behaviours
	Behaviour
	count  count
	within int64 // milliseconds, 0 for all time
}

func (e *event) eval(s State, now int64) (holds bool, until int64) {
	t := s.Timeline(e.behaviour)
	if e.within == 0 {
		return e.count.holds(t.Count), never
	}
	return e.count.window(t.Times, e.within, now)
}

// register adds what n reads to r.
func (r *Rule) register(n node, seen map[string]int) {
	switch n := n.(type) {
	case group:
		for _, n := range n.nodes {
			r.register(n, seen)
		}
	case not:
		r.register(n.node, seen)
	case *trait:
		for _, at := range n.places {
			r.traits = including(r.traits, at.name)
		}
	case consent:
		r.consents = including(r.consents, n.purpose)
	case segment:
		r.segments = including(r.segments, n.key)
	case *event:
		key := string(n.Canonical())
		i, ok := seen[key]
		if !ok {
			i = len(r.behaviours)
			seen[key] = i
			r.behaviours = append(r.behaviours, n.Behaviour)
		}
		n.behaviour = i
		r.behaviours[i].Keep = max(r.behaviours[i].Keep, n.Keep)
	}
}

// including returns sorted names with one more, unless it is among them.
func including(names []string, name string) []string {
	i, found := slices.BinarySearch(names, name)
	if found {
		return names
	}
	return slices.Insert(names, i, name)
}
