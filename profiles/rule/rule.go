// Package rule is the language of segments: it reads rules, prints them, says them in English, and tells who fits.
//
//	{"all": [
//	  {"trait": "country", "op": "in", "value": ["DE", "FR"]},
//	  {"event": "Order Completed", "where": [{"property": "revenue", "op": "gte", "value": 50}],
//	   "count": {"gte": 2}, "within": "30d"},
//	  {"not": {"event": "Unsubscribed", "within": "90d"}}
//	]}
//
// A rule speaks of traits, of behaviours, of consent and of other segments. Who keeps profiles asks a rule for its
// [Rule.Behaviours], keeps for each of them a [timeline.Timeline], which begins as [Behaviour.Empty] and takes in each
// event by [Behaviour.Fold], and asks [Rule.Eval] who fits and until when.
//
// # Conditions
//
// Each condition is an object with exactly one of the members that name its kind:
//
//	{"all": […]}  {"any": […]}  {"not": …}
//	{"trait": path, "op": operator, "value": …}
//	{"event": name, "where": […], AGGREGATE, "within": duration or "between": {"from": date, "to": date}}
//	{"sequence": [{"event": name, "where": […], "within": duration}, …],
//	 "then_not": {"event": name, "where": […], "within": duration}, "within": duration}
//	{"consent": purpose, "is": "granted" or "denied" or "unknown"}
//	{"segment": key}
//
// consent is about the latest decision on a purpose, which is unknown if there was none. segment is about being a member
// of another segment of the workspace now.
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
//
// # Events
//
// An occurrence is an event of the name whose properties meet every condition in where. Those are conditions as on
// traits, but for the relative dates within_last, within_next and more_than_ago: what happened does not depend on the
// present. The aggregate is one of these, by default "count": {"gte": 1}:
//
//	"count": {BOUNDS}
//	"distinct": {"property": path, BOUNDS}                     how many different values
//	"sum", "avg", "min", "max": {"property": path, BOUNDS}
//	"first", "last": {"property": path, "op": …, "value": …}   the value in the first or last occurrence that has one
//	"first", "last": {"op": …, "value": …}                     the time of the first or last occurrence
//
// Bounds are one of gte and gt with one of lte and lt, or eq alone; of count and distinct they are whole numbers. The
// condition of a first or last value is one as on a trait; that of a first or last time is before, after, within_last,
// within_next or more_than_ago.
//
// Where a property has several values, sum, avg, min, max and distinct take every one, and avg divides by how many there
// are. sum, avg, min and max are of the JSON numbers that have at most 34 significant digits and are 0 or, without their
// sign, at least 10⁻³⁴ and less than 10³⁴; other values are as if they were absent. All of this is exact: nothing is
// rounded. distinct takes strings, numbers, true and false; numbers that are equal are one value. first and last take the
// same, but no string of more than 512 bytes, nor a number that long. Of several values at the same time last takes the
// one that is greatest, and first the one that is smallest, as JSON text compared by its bytes.
//
// The sum of nothing is 0, and so is the number of values; of avg, min, max, first and last of nothing no condition is
// true, not even a negative one.
//
// # Windows
//
// Time counts in milliseconds, and an occurrence counts at its event time, even if that is after now. Without a window all
// time counts; between counts what is from its from on, up to but without its to; within counts what is less than a
// duration ago. Then
//
//   - count, distinct and last are exact: an occurrence at t is in the window up to, but without, t + d.
//   - sum, avg, min, max and first have a resolution r, which is the smallest of 1s, 2s, 5s, 10s, 15s, 30s, 1m, 2m, 5m,
//     10m, 15m, 30m, 1h, 2h, 3h, 6h, 12h, 1d, 2d and 7d that is at least d / 720. An occurrence stays in the window until
//     d after the end of its stretch of length r, as multiples of r since 1970 divide time. So it is in for up to r longer.
//     What is more than d + 5m older than the newest one may be forgotten, because now is never that far before it.
//
// count in a window needs the newest occurrences: as many as must be, or one more than may be, of which there are at most
// 1,000. distinct counts to 999, in a window or not.
//
// # Sequences
//
// A sequence holds if there are occurrences of its 1 to 8 steps, each later than the one before, and at most within later
// where a step says so. within of the sequence says how long ago the first one may be at most: the window is exact. With
// then_not nothing of that kind may follow the last one, ever or within its time, the end of which is included. So
// {"sequence": [A], "then_not": B within g} holds from the first moment at which B can no longer come in time: g and 1 ms
// after A. A sequence of one step must have then_not.
//
// Only the newest 100 occurrences of each step and of then_not are looked at. If there were more of the latter, what ended
// before the oldest of these does not count.
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
	MaxSteps    = 32       // names in a path
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

	// Timeline returns what is kept of the behaviour at index i of [Rule.Behaviours], with at least its Keep. The
	// zero timeline stands for nothing.
	Timeline(i int) timeline.Timeline

	// Consent returns the latest decision on a purpose, and whether there has been one.
	Consent(purpose string) (granted, known bool)

	// Segment tells whether the profile is a member of the segment with this key.
	Segment(key string) bool
}

// Behaviours returns the distinct behaviours that r looks at, in the order in which it first names them. The caller must
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
// now is cut to the millisecond.
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
		n.behaviour = r.use(n.Behaviour, seen)
	case *sequence:
		for i := range n.steps {
			n.steps[i].behaviour = r.use(n.steps[i].Behaviour, seen)
		}
		if n.then != nil {
			n.then.behaviour = r.use(n.then.Behaviour, seen)
		}
	}
}

// use returns the index of a behaviour in r.behaviours, to which it may be added.
func (r *Rule) use(b Behaviour, seen map[string]int) int {
	key := string(b.Canonical())
	i, ok := seen[key]
	if !ok {
		i = len(r.behaviours)
		seen[key] = i
		r.behaviours = append(r.behaviours, b)
	}
	r.behaviours[i].Keep = max(r.behaviours[i].Keep, b.Keep)
	return i
}

// including returns sorted names with one more, unless it is among them.
func including(names []string, name string) []string {
	i, found := slices.BinarySearch(names, name)
	if found {
		return names
	}
	return slices.Insert(names, i, name)
}
