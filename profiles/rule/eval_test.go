package rule_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"

	"github.com/mubatch/mubatch/profiles/rule"
	"github.com/mubatch/mubatch/profiles/timeline"
)

// profile is a rule.State.
type profile struct {
	traits    map[string]string // JSON
	consents  map[string]bool
	segments  map[string]bool
	timelines []timeline.Timeline
}

func (p profile) Trait(name string) (jsontext.Value, bool) {
	v, ok := p.traits[name]
	return jsontext.Value(v), ok
}

func (p profile) Timeline(i int) timeline.Timeline { return p.timelines[i] }

func (p profile) Consent(purpose string) (granted, known bool) {
	granted, known = p.consents[purpose]
	return granted, known
}

func (p profile) Segment(key string) bool { return p.segments[key] }

func parse(t fataler, s string) *rule.Rule {
	r, err := rule.Parse([]byte(s))
	if err != nil {
		t.Fatalf("parse %s: %v", s, err)
	}
	return r
}

// remember folds events into just the timelines that r asks for.
func remember(r *rule.Rule, traits map[string]string, events []naiveEvent) profile {
	p := profile{traits: traits}
	for _, b := range r.Behaviours() {
		tl := b.Empty()
		for _, e := range events {
			if e.name == b.Event {
				b.Fold(&tl, e.at, jsontext.Value(e.properties))
			}
		}
		p.timelines = append(p.timelines, tl)
	}
	return p
}

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func TestEvalOfCounts(t *testing.T) {
	t.Parallel()
	ago := func(seconds ...int) (events []naiveEvent) {
		for _, s := range seconds {
			events = append(events, naiveEvent{"Bought", `{}`, noon.Add(-time.Duration(s) * time.Second).UnixMilli()})
		}
		return events
	}
	tests := []struct {
		name   string
		rule   string
		events []naiveEvent
		want   bool
		in     time.Duration // from noon to the end of the answer; 0 is for ever
	}{
		{"never done is not done", `{"event":"Bought"}`, nil, false, 0},
		{"done once is done for ever", `{"event":"Bought"}`, ago(1e6), true, 0},
		{"a count of all time needs no times", `{"event":"Bought","count":{"gt":2}}`, ago(1, 2, 3), true, 0},
		{"exactly so many of all time", `{"event":"Bought","count":{"eq":2}}`, ago(1, 2, 3), false, 0},
		{"never did it", `{"event":"Bought","count":{"eq":0}}`, nil, true, 0},
		{"done in the window until it leaves", `{"event":"Bought","within":"10s"}`, ago(3), true, 7 * time.Second},
		{"an occurrence at the end of the window is outside", `{"event":"Bought","within":"10s"}`, ago(10), false, 0},
		{"an occurrence now is inside for the whole window", `{"event":"Bought","within":"10s"}`, ago(0), true, 10 * time.Second},
		{"an occurrence dated after now is inside", `{"event":"Bought","within":"10s"}`, ago(-5), true, 15 * time.Second},
		{"a day has 24 hours", `{"event":"Bought","within":"1d12h"}`, ago(0), true, 36 * time.Hour},
		{"at least two until the second newest leaves", `{"event":"Bought","count":{"gte":2},"within":"10s"}`, ago(1, 4, 9), true, 6 * time.Second},
		{"at most one from when the second newest leaves", `{"event":"Bought","count":{"lte":1},"within":"10s"}`, ago(1, 4, 9), false, 6 * time.Second},
		{"at most two, and it stays so", `{"event":"Bought","count":{"lt":3},"within":"10s"}`, ago(1, 4), true, 0},
		{"did not within, until then", `{"event":"Bought","count":{"eq":0},"within":"10s"}`, ago(1), false, 9 * time.Second},
		{"exactly two until one leaves", `{"event":"Bought","count":{"eq":2},"within":"10s"}`, ago(1, 4), true, 6 * time.Second},
		{"exactly one from when one of two leaves", `{"event":"Bought","count":{"eq":1},"within":"10s"}`, ago(1, 4), false, 6 * time.Second},
		{"exactly one never, if two leave at once", `{"event":"Bought","count":{"eq":1},"within":"10s"}`, ago(4, 4), false, 0},
		{"one to two of three", `{"event":"Bought","count":{"gte":1,"lte":2},"within":"10s"}`, ago(1, 4, 4), false, 6 * time.Second},
		{
			"all is false as long as any of it stays so",
			`{"all":[{"event":"Bought","count":{"eq":0},"within":"10s"},{"event":"Bought","count":{"eq":0},"within":"20s"}]}`,
			ago(1), false, 19 * time.Second,
		},
		{
			"all is true until the first of it ends",
			`{"all":[{"event":"Bought","within":"10s"},{"event":"Bought","within":"20s"}]}`,
			ago(1), true, 9 * time.Second,
		},
		{
			"any is true as long as any of it stays so",
			`{"any":[{"event":"Bought","within":"10s"},{"event":"Bought","within":"20s"}]}`,
			ago(1), true, 19 * time.Second,
		},
		{
			"any is true for ever if something in it is",
			`{"any":[{"event":"Bought","within":"10s"},{"event":"Bought"}]}`,
			ago(1), true, 0,
		},
		{"not ends when the opposite does", `{"not":{"event":"Bought","within":"10s"}}`, ago(1), false, 9 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := parse(t, tt.rule)
			got, until := r.Eval(remember(r, nil, tt.events), noon)
			want := time.Time{}
			if tt.in > 0 {
				want = noon.Add(tt.in)
			}
			if got != tt.want || !until.Equal(want) {
				t.Errorf("%v until %v, want %v until %v", got, until, tt.want, want)
			}
		})
	}
}

func TestEvalOfDatesNearNow(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	tests := []struct {
		name  string
		op    string
		trait string
		want  bool
		in    time.Duration
	}{
		{"now is within the last day", "within_last", `"2026-03-01T12:00:00Z"`, true, 24 * time.Hour},
		{"an hour ago is, for 23 hours", "within_last", `"2026-03-01T12:00:00+01:00"`, true, 23 * time.Hour},
		{"a day ago no longer is", "within_last", `"2026-02-28T12:00:00Z"`, false, 0},
		{"in an hour will be", "within_last", `"2026-03-01T13:00:00Z"`, false, time.Hour},
		{"seconds are a date", "within_last", `1772366399`, true, 24*time.Hour - time.Second},
		{"milliseconds are a date", "within_last", `1772366399999`, true, 24*time.Hour - ms},
		{"a day is midnight UTC", "within_last", `"2026-03-01"`, true, 12 * time.Hour},
		{"the latest of several counts", "within_last", `["2026-03-01T11:00:00Z", "2026-03-01T11:30:00Z"]`, true, 23*time.Hour + 30*time.Minute},
		{"the next of several counts", "within_last", `["2026-03-01T14:00:00Z", "2026-03-01T13:00:00Z"]`, false, time.Hour},
		{"now is within the next day, for a moment", "within_next", `"2026-03-01T12:00:00Z"`, true, ms},
		{"in an hour is, for an hour", "within_next", `"2026-03-01T13:00:00Z"`, true, time.Hour + ms},
		{"in a day will be in a moment", "within_next", `"2026-03-02T12:00:00Z"`, false, ms},
		{"in two days will be in one", "within_next", `"2026-03-03T12:00:00Z"`, false, 24*time.Hour + ms},
		{"the past is not the next day", "within_next", `"2026-03-01T11:59:59.999Z"`, false, 0},
		{"a day ago is a day ago, for ever", "more_than_ago", `"2026-02-28T12:00:00Z"`, true, 0},
		{"almost a day ago will be", "more_than_ago", `"2026-02-28T12:00:00.001Z"`, false, ms},
		{"in a day will be in two", "more_than_ago", `"2026-03-02T12:00:00Z"`, false, 48 * time.Hour},
		{"no date is nothing", "more_than_ago", `"soon"`, false, 0},
		{"an impossible date is nothing", "more_than_ago", `"2025-02-30"`, false, 0},
		{"true is no date", "more_than_ago", `true`, false, 0},
	}
	for _, tt := range tests {
		t.Run(tt.op+": "+tt.name, func(t *testing.T) {
			t.Parallel()
			r := parse(t, fmt.Sprintf(`{"trait":"at","op":%q,"value":"1d"}`, tt.op))
			got, until := r.Eval(profile{traits: map[string]string{"at": tt.trait}}, noon)
			want := time.Time{}
			if tt.in > 0 {
				want = noon.Add(tt.in)
			}
			if got != tt.want || !until.Equal(want) {
				t.Errorf("%v until %v, want %v until %v", got, until, tt.want, want)
			}
		})
	}
}

// However a rule, a history and a moment are chosen, Eval says what looking at the whole history says, at that moment and
// until the end that it names.
func TestEvalAgreesWithTheWholeHistory(t *testing.T) {
	t.Parallel()
	for range 6 {
		rapid.Check(t, evalAgrees)
	}
}

func evalAgrees(t *rapid.T) {
	text := anyRule(t, 3)
	r, err := rule.Parse([]byte(text))
	if err != nil {
		t.Fatalf("parse %s: %v", text, err)
	}
	printed, err := r.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", text)
	tree := decode(t, text).(map[string]any)

	n, state := anyHistory(t)
	now := time.UnixMilli(n.now).Add(time.Duration(rapid.IntRange(0, 999_999).Draw(t, "nanoseconds")))
	state.timelines = remember(r, nil, n.events).timelines

	want := n.holds(t, tree)
	holds, until := r.Eval(state, now)
	if holds != want {
		t.Fatalf("at %d: %v, want %v", n.now, holds, want)
	}
	read := parse(t, string(printed))
	state.timelines = remember(read, nil, n.events).timelines
	if again, end := read.Eval(state, now); again != holds || end != until {
		t.Fatalf("printed as %s: %v until %v, want %v until %v", printed, again, end, holds, until)
	}

	end := n.now + 20_000_000 // beyond all that can happen
	if !until.IsZero() {
		if !until.After(now) {
			t.Fatalf("at %v: until is %v", now, until)
		}
		end = until.UnixMilli()
	}
	instants := []int64{n.now, end - 1}
	for range 5 {
		instants = append(instants, rapid.Int64Range(n.now, end-1).Draw(t, "before the end"))
	}
	for _, e := range n.events { // and when something can change
		for _, d := range []int64{0, 1000, 5000, 60_000, 65_000, 3_600_000, 3_660_000} {
			instants = append(instants, e.at+d, e.at+d+1, e.at+d+1000-(e.at+d)%1000, e.at+d+5000-(e.at+d)%5000)
		}
	}
	for _, at := range instants {
		if n.now = at; now.UnixMilli() <= at && at < end && n.holds(t, tree) != want {
			t.Fatalf("at %v: %v until %d, but not at %d", now, holds, end, at)
		}
	}
	if until.IsZero() {
		return
	}
	n.now = end
	if holds, _ := r.Eval(state, until); holds != n.holds(t, tree) {
		t.Fatalf("at the end, %v: %v", until, holds)
	}
	if (tree["event"] != nil || tree["sequence"] != nil || isOneValue(n, tree)) && n.holds(t, tree) == want {
		t.Fatalf("a single condition is %v until %v, and still then", want, until)
	}
}

// anyHistory returns a profile as the naive evaluator knows it, and as a state, of which the timelines are missing. What is
// newest is at most 5 minutes after now.
func anyHistory(t *rapid.T) (n naive, p profile) {
	n = naive{traits: map[string]any{}, consents: map[string]bool{}, segments: map[string]bool{}}
	traits := map[string]string{}
	for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "list", "d", "a.b"}), 0, 5, rapid.ID).Draw(t, "traits") {
		traits[name] = anyValue(t, 2)
		n.traits[name] = decode(t, traits[name])
	}
	for _, purpose := range purposes {
		if rapid.Bool().Draw(t, "decided") {
			n.consents[purpose] = rapid.Bool().Draw(t, "granted")
		}
	}
	for _, key := range keys {
		n.segments[key] = rapid.Bool().Draw(t, "member")
	}
	n.now = anyInstant(t) + rapid.SampledFrom([]int64{0, 0, 0, 60_000, 3_600_000}).Draw(t, "later")
	for range rapid.SampledFrom([]int{8, 4, 12, 6, 16, 3, 2, 1, 0}).Draw(t, "events") {
		e := anyEvent(t)
		n.events = append(n.events, e)
		n.now = max(n.now, e.at-300_000)
	}
	return n, profile{traits: traits, consents: n.consents, segments: n.segments}
}

// isOneValue tells whether a rule is about a trait, and the trait is one value.
func isOneValue(n naive, rule map[string]any) bool {
	path, ok := rule["trait"].(string)
	if !ok {
		return false
	}
	found := lookUp(n.traits, strings.Split(path, "."))
	if len(found) != 1 {
		return false
	}
	_, isArray := found[0].([]any)
	return !isArray
}
