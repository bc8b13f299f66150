package profiles_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/profiles/profilestest/brute"
	"github.com/mubatch/mubatch/profiles/rule"
	"github.com/mubatch/mubatch/profiles/timeline"
)

// Random rules are asked of random histories at random moments, and the answers are compared with those of package brute,
// which looks through everything anew. Here the rules answer from what they keep of somebody; in oracle_lanes_test.go it is
// lanes, through which everything came.

var (
	oracleRuns = flag.Int("oracle.runs", 10_000, "how many random histories rules are asked of; a fifth as many go through the lanes")
	oracleSeed = flag.Uint64("oracle.seed", 0, "run only this seed")
)

// oracleSeeds returns the first seed and how many there are to run.
func oracleSeeds(runs int) (first, n uint64) {
	if *oracleSeed != 0 {
		return *oracleSeed, 1
	}
	if testing.Short() || raceDetector {
		runs /= 40 // there is but one goroutine; make simulation does them all
	}
	return 1, uint64(max(1, runs))
}

// tally counts comparisons, and how many different ones there were.
type tally struct {
	seed      maphash.Seed
	cases     map[uint64]bool // rule, history and moment
	histories map[uint64]bool // rule and history
	held      int
}

func newTally() *tally {
	return &tally{seed: maphash.MakeSeed(), cases: map[uint64]bool{}, histories: map[uint64]bool{}}
}

func (t *tally) add(rule, history string, now int64, held bool) {
	h := maphash.String(t.seed, rule) ^ maphash.String(t.seed, "|"+history)
	t.histories[h] = true
	t.cases[h^maphash.Comparable(t.seed, now)] = true
	if held {
		t.held++
	}
}

// report prints what was compared, and fails if a run compares less than it should on average.
func (t *tally) report(test *testing.T, what string, first, runs, perRun uint64) {
	test.Helper()
	if n := uint64(len(t.cases)); runs > 10 && n < runs*perRun {
		test.Errorf("%d comparisons in %d runs, want %d in each", n, runs, perRun)
	}
	fmt.Fprintf(os.Stderr, "oracle, %s: %v, from seed %d to %d\n", what, t, first, first+runs-1)
}

func (t *tally) String() string {
	return fmt.Sprintf("%d different cases of rule, history and moment, with %d different pairs of rule and history; in %d the answer was yes",
		len(t.cases), len(t.histories), t.held)
}

// scales are how far apart things happen, and the windows that go with it: each has another resolution.
var scales = []struct {
	span, grid time.Duration
	windows    []string
}{
	{40 * time.Second, 500 * time.Millisecond, []string{"1s", "2s", "5s", "7s", "10s", "20s", "40s"}},
	{40 * time.Second, time.Second, []string{"1s", "3s", "8s", "15s", "30s"}},
	{2 * time.Hour, 30 * time.Second, []string{"1m", "12m", "12m1s", "25m", "1h", "2h"}},
	{5 * 24 * time.Hour, time.Hour, []string{"1h", "12h", "1d", "2d", "7d"}},
	{400 * 24 * time.Hour, 6 * time.Hour, []string{"1d", "1w", "30d", "90d", "365d"}},
	{5000 * 24 * time.Hour, 10 * 24 * time.Hour, []string{"30d", "720d", "721d", "3653d"}},
}

// newChance returns the chance of a seed at one of the scales; simulated minutes need the first.
func newChance(rng *rand.Rand, scale int) *brute.Chance {
	s := scales[scale]
	return &brute.Chance{
		Rand: rng, Start: oracleStart, Span: s.span.Milliseconds(), Grid: s.grid.Milliseconds(), Windows: s.windows,
	}
}

// oracleStart is when the first thing happens. It is on the border of no bucket but those of a second.
var oracleStart = time.Date(2026, 3, 1, 11, 59, 47, 0, time.UTC).UnixMilli()

// asked is a rule as both sides know it, with the segments that it may refer to.
type asked struct {
	rule     any // decoded
	segments map[string]any
	person   *brute.Person
	text     string // the rule
	history  string // the person
}

// drawAsked draws somebody, and a few rules to ask of them.
func drawAsked(c *brute.Chance) (list []asked) {
	p := drawPerson(c)
	segments := map[string]any{}
	for i := range c.IntN(3) {
		segments["s"+strconv.Itoa(i)] = c.Rule(2)
		c.Segments = append(c.Segments, "s"+strconv.Itoa(i))
	}
	history := encode(p)
	for range 4 {
		r := c.Rule(3)
		list = append(list, asked{r, segments, p, encode(r), history})
	}
	return list
}

func drawPerson(c *brute.Chance) *brute.Person {
	switch n := c.IntN(4000); {
	case n == 0:
		return c.Person(1000 + c.IntN(1500)) // more than is kept
	case n < 20:
		return c.Person(90 + c.IntN(250))
	case n < 160:
		c.Plain = true
		return c.Often()
	}
	return c.Person(c.IntN(14))
}

// folded is somebody as the engine knows them: see [rule.State]. There is one for each rule.
type folded struct {
	person    *brute.Person
	rule      *rule.Rule
	timelines []timeline.Timeline
	segments  map[string]*folded
	now       time.Time
	until     time.Time // the earliest end of the answers of segments that were referred to
}

func (f *folded) Trait(name string) (jsontext.Value, bool) {
	v, ok := f.person.Traits[name]
	return jsontext.Value(encode(v)), ok
}

func (f *folded) Timeline(i int) timeline.Timeline { return f.timelines[i] }

func (f *folded) Consent(purpose string) (granted, known bool) {
	granted, known = f.person.Consent[purpose]
	return granted, known
}

func (f *folded) Segment(key string) bool {
	holds, until := f.segments[key].eval(f.now)
	f.until = sooner(f.until, until)
	return holds
}

// eval asks the engine.
func (f *folded) eval(now time.Time) (holds bool, until time.Time) {
	f.now, f.until = now, time.Time{}
	holds, until = f.rule.Eval(f, now)
	return holds, sooner(until, f.until)
}

func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func encode(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// fold gives the engine what it keeps of the person, for each rule.
func (a asked) fold(rng *rand.Rand) (*folded, error) {
	segments := map[string]*folded{}
	known := func(decoded any) (*folded, error) {
		text := encode(decoded)
		r, err := rule.Parse([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", text, err)
		}
		f := &folded{person: a.person, rule: r, segments: segments}
		for _, b := range r.Behaviours() {
			t, err := foldTimeline(rng, b, a.person.Events)
			if err != nil {
				return nil, err
			}
			f.timelines = append(f.timelines, t)
		}
		return f, nil
	}
	for _, key := range slices.Sorted(maps.Keys(a.segments)) {
		f, err := known(a.segments[key])
		if err != nil {
			return nil, err
		}
		segments[key] = f
	}
	return known(a.rule)
}

// foldTimeline folds events in any order into any number of timelines, some of which were stored and read back, and
// merges those in any order.
func foldTimeline(rng *rand.Rand, b rule.Behaviour, events []brute.Occurrence) (timeline.Timeline, error) {
	parts := make([]timeline.Timeline, 1+rng.IntN(4))
	for i := range parts {
		parts[i] = b.Empty()
		if rng.IntN(4) == 0 {
			parts[i] = timeline.Timeline{}
		}
	}
	for _, i := range rng.Perm(len(events)) {
		e := events[i]
		if e.Name != b.Event {
			continue
		}
		properties := jsontext.Value(encode(e.Properties))
		into := &parts[rng.IntN(len(parts))]
		one := b.Empty()
		if b.Fold(&one, e.At, properties) && !b.Matches(properties) {
			return one, errors.New("an event was folded that does not match: " + string(properties))
		}
		if rng.IntN(2) == 0 && !isZero(*into) {
			b.Fold(into, e.At, properties)
		} else {
			into.Merge(one)
		}
	}
	for len(parts) > 1 {
		i := rng.IntN(len(parts) - 1)
		if rng.IntN(2) == 0 {
			parts[i], parts[i+1] = parts[i+1], parts[i]
		}
		into := parts[i].Clone()
		into.Merge(parts[i+1])
		parts[i] = into
		parts = slices.Delete(parts, i+1, i+2)
		if rng.IntN(2) == 0 {
			packed, err := parts[i].AppendBinary(nil)
			if err != nil {
				return parts[i], err
			}
			read, rest, err := timeline.Decode(packed)
			if err != nil || len(rest) > 0 {
				return read, fmt.Errorf("read back a timeline: %d bytes left, error %w", len(rest), err)
			}
			parts[i] = read
		}
	}
	return parts[0], nil
}

// isZero tells whether a timeline is of nothing, not even of a behaviour.
func isZero(t timeline.Timeline) bool { return t.Count == 0 && t.Keep == 0 }

// disagreement compares the two at a moment and until the end of the answer, and says what is wrong, if anything is.
func (a asked) disagreement(f *folded, c *brute.Chance, now int64, t *tally) string {
	want := brute.Holds(a.rule, a.person, a.segments, now)
	at := time.UnixMilli(now).Add(time.Duration(c.IntN(1_000_000)))
	holds, until := f.eval(at)
	if holds != want {
		return fmt.Sprintf("at %d: %v, want %v", now, holds, want)
	}
	t.note(a, now, want)
	if c.IntN(4) == 0 {
		if wrong := a.explained(f, at); wrong != "" {
			return wrong
		}
	}
	end := now + 2*c.Span
	if !until.IsZero() {
		if !until.After(at) {
			return fmt.Sprintf("at %v: until %v, which is not after", at, until)
		}
		end = until.UnixMilli()
	}
	for _, then := range []int64{end - 1, now + c.Int64N(max(1, end-now)), a.now(c)} {
		if now <= then && then < end && brute.Holds(a.rule, a.person, a.segments, then) != want {
			return fmt.Sprintf("at %d: %v until %d, but at %d it is %v", now, want, end, then, !want)
		}
	}
	if until.IsZero() {
		return ""
	}
	then := brute.Holds(a.rule, a.person, a.segments, end)
	if again, _ := f.eval(until); again != then {
		return fmt.Sprintf("at %d, when an answer has ended: %v, want %v", end, again, then)
	}
	t.note(a, end, then)
	return ""
}

// explained compares what the engine says of each condition within the rule, as it prints it.
func (a asked) explained(f *folded, at time.Time) string {
	printed, err := f.rule.MarshalJSON()
	if err != nil {
		return err.Error()
	}
	all := brute.Decode(printed)
	var check func(e *rule.Explanation) string
	check = func(e *rule.Explanation) string {
		part := all
		for _, step := range strings.Split(e.Pointer, "/")[1:] {
			if list, ok := part.([]any); ok {
				i, err := strconv.Atoi(step)
				if err != nil || i >= len(list) {
					return "explains " + e.Pointer
				}
				part = list[i]
				continue
			}
			part = part.(map[string]any)[step]
		}
		if part == nil {
			return "explains " + e.Pointer
		}
		if want := brute.Holds(part, a.person, a.segments, at.UnixMilli()); e.Holds != want {
			return fmt.Sprintf("at %d: explains that %s is %v, want %v", at.UnixMilli(), e.Pointer, e.Holds, want)
		}
		for _, inner := range e.Nodes {
			if wrong := check(inner); wrong != "" {
				return wrong
			}
		}
		return ""
	}
	return check(f.rule.Explain(f, at))
}

func (t *tally) note(a asked, now int64, held bool) {
	if t != nil {
		t.add(a.text, a.history, now, held)
	}
}

// now draws a moment to ask at.
func (a asked) now(c *brute.Chance) int64 {
	rules := []any{a.rule}
	for _, key := range c.Segments {
		rules = append(rules, a.segments[key])
	}
	return c.Now(rules, a.person)
}

// check compares the two at a few moments.
func (a asked) check(c *brute.Chance, t *tally) string {
	f, err := a.fold(c.Rand)
	if err != nil {
		return err.Error()
	}
	for range 3 {
		if wrong := a.disagreement(f, c, a.now(c), t); wrong != "" {
			return wrong
		}
	}
	return ""
}

// smallest leaves out what it can of a rule and a person on whom the two still disagree.
func (a asked) smallest(c *brute.Chance) (asked, string) {
	fails := func(a asked) (wrong string) {
		for range 100 { // other moments may be needed now
			if wrong = a.check(c, nil); wrong != "" {
				return wrong
			}
		}
		return ""
	}
	why := ""
	for again := true; again; {
		again = false
		var simpler []asked
		for _, r := range brute.SimplerRules(a.rule) {
			if _, err := rule.Parse([]byte(encode(r))); err == nil {
				simpler = append(simpler, asked{rule: r, segments: a.segments, person: a.person})
			}
		}
		for _, p := range brute.SimplerPeople(a.person) {
			simpler = append(simpler, asked{rule: a.rule, segments: a.segments, person: p})
		}
		for _, s := range simpler {
			if wrong := fails(s); wrong != "" {
				a, why, again = s, wrong, true
				break
			}
		}
	}
	return a, why
}

func (a asked) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "rule:     %s\nas JSON:  %s\n", describe(a.rule), encode(a.rule))
	for key, s := range a.segments {
		fmt.Fprintf(&b, "segment:  %s: %s\n", key, encode(s))
	}
	fmt.Fprintf(&b, "traits:   %s\nconsent:  %s\n", encode(a.person.Traits), encode(a.person.Consent))
	events := slices.Clone(a.person.Events)
	slices.SortFunc(events, func(a, b brute.Occurrence) int { return int(a.At - b.At) })
	for _, e := range events {
		fmt.Fprintf(&b, "event:    at %d %s %s\n", e.At, e.Name, encode(e.Properties))
	}
	return b.String()
}

// computed compares the values of a computed trait at a few moments, and until they end.
func (a asked) computed(c *brute.Chance, t *tally) string {
	text := encode(a.rule)
	parsed, err := rule.ParseComputed([]byte(text))
	if err != nil {
		return err.Error()
	}
	line, err := foldTimeline(c.Rand, parsed.Behaviour(), a.person.Events)
	if err != nil {
		return err.Error()
	}
	for range 3 {
		now := a.now(c)
		at := time.UnixMilli(now).Add(time.Duration(c.IntN(1_000_000)))
		want := brute.Value(a.rule, a.person, now)
		got, until := parsed.Value(line, at)
		if !same(brute.Decode(got), want) {
			return fmt.Sprintf("at %d: %s, want %v", now, got, want)
		}
		t.note(a, now, want != nil)
		end := now + 2*c.Span
		if !until.IsZero() {
			if !until.After(at) {
				return fmt.Sprintf("at %v: until %v, which is not after", at, until)
			}
			end = until.UnixMilli()
		}
		for _, then := range []int64{end - 1, now + c.Int64N(max(1, end-now)), a.now(c)} {
			if now <= then && then < end && !same(brute.Value(a.rule, a.person, then), want) {
				return fmt.Sprintf("at %d: %s until %d, but at %d it is %v", now, got, end, then, brute.Value(a.rule, a.person, then))
			}
		}
	}
	return ""
}

// same compares two values of computed traits.
func same(a, b any) bool {
	if x, ok := a.(json.Number); ok {
		y, ok := b.(json.Number)
		return ok && brute.Equal(x, y)
	}
	return a == b
}

func describe(decoded any) string {
	text := []byte(encode(decoded))
	if c, err := rule.ParseComputed(text); err == nil {
		return c.Describe()
	}
	r, err := rule.Parse(text)
	if err != nil {
		return err.Error()
	}
	return r.Describe()
}

func TestRulesAgreeWithLookingAtEverything(t *testing.T) {
	t.Parallel()
	count := newTally()
	first, n := oracleSeeds(*oracleRuns)
	for seed := first; seed < first+n; seed++ {
		c := newChance(rand.New(rand.NewPCG(seed, 3)), int(seed)%len(scales))
		for _, a := range drawAsked(c) {
			wrong := a.check(c, count)
			if wrong == "" {
				continue
			}
			small, why := a.smallest(c)
			t.Fatalf("seed %d: %s\n%s\nsmallest that was found: %s\n%s", seed, wrong, a, why, small)
		}
	}
	count.report(t, "rules", first, n, 8)
}

func TestComputedValuesAgreeWithLookingAtEverything(t *testing.T) {
	t.Parallel()
	count := newTally()
	first, n := oracleSeeds(*oracleRuns / 5)
	for seed := first; seed < first+n; seed++ {
		c := newChance(rand.New(rand.NewPCG(seed, 6)), int(seed)%len(scales))
		p := drawPerson(c)
		history := encode(p)
		for range 4 {
			r := c.Computed()
			a := asked{rule: r, person: p, text: encode(r), history: history}
			if wrong := a.computed(c, count); wrong != "" {
				t.Fatalf("seed %d: %s\n%s", seed, wrong, a)
			}
		}
	}
	count.report(t, "computed values", first, n, 8)
}
