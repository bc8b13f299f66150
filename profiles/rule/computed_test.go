package rule_test

import (
	"bytes"
	"cmp"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/mubatch/mubatch/profiles/rule"
	"github.com/mubatch/mubatch/profiles/timeline"
)

func TestComputedValues(t *testing.T) {
	t.Parallel()
	events := []naiveEvent{
		{"E", `{"n":1,"s":"a"}`, noon.Add(-90 * time.Minute).UnixMilli()},
		{"E", `{"n":[0.5,1e20],"s":"b"}`, noon.Add(-3 * time.Second).UnixMilli()},
		{"E", `{"n":"7","s":["b",1.0]}`, noon.Add(-2 * time.Second).UnixMilli()},
		{"E", `{"n":-2}`, noon.Add(-25 * time.Hour).UnixMilli()},
	}
	tests := []struct {
		give, value string
		in          time.Duration // from noon to when it changes; 0 is never
		describe    string
	}{
		{`{"event":"E","count":{}}`, `4`, 0, `The number of "E".`},
		{`{"event":"F","count":{}}`, `0`, 0, `The number of "F".`},
		{`{"event":"E","count":{},"within":"1d"}`, `3`, 22*time.Hour + 32*time.Minute, `The number of "E" in the last 1 day.`},
		{`{"event":"F","count":{},"within":"1d"}`, `0`, 0, `The number of "F" in the last 1 day.`},
		{`{"event":"E","count":{},"between":{"to":"2026-03-01T00:00:00Z"}}`, `1`, 0, `The number of "E" before 2026-03-01T00:00:00Z.`},
		{`{"event":"E","where":[{"property":"s","op":"eq","value":"b"}],"count":{}}`, `2`, 0, `The number of "E" (where s is "b").`},
		{`{"event":"E","sum":{"property":"n"}}`, `99999999999999999999.5`, 0, `The sum of n over "E".`},
		{`{"event":"F","sum":{"property":"n"}}`, `0`, 0, `The sum of n over "F".`},
		{`{"event":"E","sum":{"property":"n"},"within":"10s"}`, `100000000000000000000.5`, 8 * time.Second, `The sum of n over "E" in the last 10 seconds.`},
		{`{"event":"E","avg":{"property":"n"},"between":{"to":"2026-03-01T11:59:00Z"}}`, `-0.5`, 0, `The average n over "E" before 2026-03-01T11:59:00Z.`},
		{`{"event":"E","avg":{"property":"n"}}`, `24999999999999999999.875`, 0, `The average n over "E".`},
		{`{"event":"F","avg":{"property":"n"}}`, `null`, 0, `The average n over "F".`},
		{`{"event":"E","min":{"property":"n"}}`, `-2`, 0, `The smallest n over "E".`},
		{`{"event":"E","max":{"property":"n"},"within":"1h"}`, `100000000000000000000`, time.Hour, `The largest n over "E" in the last 1 hour.`},
		{`{"event":"E","distinct":{"property":"s"}}`, `3`, 0, `The number of different values of s over "E".`},
		{`{"event":"E","distinct":{"property":"s"},"within":"10s"}`, `2`, 8 * time.Second, `The number of different values of s over "E" in the last 10 seconds.`},
		{`{"event":"E","first":{"property":"s"}}`, `"a"`, 0, `The first s in "E".`},
		{`{"event":"E","last":{"property":"s"},"within":"10s"}`, `1`, 8 * time.Second, `The last s in "E" in the last 10 seconds.`},
		{`{"event":"E","first":{}}`, `"2026-02-28T11:00:00.000Z"`, 0, `The time of the first "E".`},
		{`{"event":"E","first":{},"within":"10s"}`, `"2026-03-01T11:59:57.000Z"`, 8 * time.Second, `The time of the first "E" in the last 10 seconds.`},
		{`{"event":"E","last":{},"within":"10s"}`, `"2026-03-01T11:59:58.000Z"`, 8 * time.Second, `The time of the last "E" in the last 10 seconds.`},
		{`{"event":"F","last":{}}`, `null`, 0, `The time of the last "F".`},
	}
	for _, tt := range tests {
		t.Run(tt.give, func(t *testing.T) {
			t.Parallel()
			c, err := rule.ParseComputed([]byte(tt.give))
			if err != nil {
				t.Fatal(err)
			}
			want := time.Time{}
			if tt.in > 0 {
				want = noon.Add(tt.in)
			}
			v, until := c.Value(folded(c.Behaviour(), events), noon)
			if string(v) != tt.value || !until.Equal(want) {
				t.Errorf("value is %s until %v, want %s until %v", v, until, tt.value, want)
			}
			if printed, err := c.MarshalJSON(); string(printed) != tt.give || err != nil {
				t.Errorf("printed as %s, error %v", printed, err)
			}
			if got := c.Describe(); got != tt.describe {
				t.Errorf("described as %s, want %s", got, tt.describe)
			}
		})
	}
}

// folded returns the timeline of a behaviour.
func folded(b rule.Behaviour, events []naiveEvent) timeline.Timeline {
	t := b.Empty()
	for _, e := range events {
		if e.name == b.Event {
			b.Fold(&t, e.at, jsontext.Value(e.properties))
		}
	}
	return t
}

func TestAnAverageIsRoundedHalfToEven(t *testing.T) {
	t.Parallel()
	c, err := rule.ParseComputed([]byte(`{"event":"E","avg":{"property":"n"}}`))
	if err != nil {
		t.Fatal(err)
	}
	for properties, want := range map[string]string{
		`{"n":[1,0,0]}`:            `0.333333333333`,
		`{"n":[2,0,0]}`:            `0.666666666667`,
		`{"n":[-2,0,0]}`:           `-0.666666666667`,
		`{"n":0.0000000000005}`:    `0`,
		`{"n":0.0000000000015}`:    `2e-12`,
		`{"n":-0.0000000000025}`:   `-2e-12`,
		`{"n":0.00000000000051}`:   `1e-12`,
		`{"n":[9007199254740993]}`: `9007199254740993`,
	} {
		v, _ := c.Value(folded(c.Behaviour(), []naiveEvent{{"E", properties, 0}}), noon)
		if string(v) != want {
			t.Errorf("%s: %s, want %s", properties, v, want)
		}
	}
}

// However a computed value, a history and a moment are chosen, it is what looking at the whole history says, at that moment
// and until the end that is named.
func TestComputedAgreesWithTheWholeHistory(t *testing.T) {
	t.Parallel()
	for range 2 {
		rapid.Check(t, computedAgrees)
	}
}

func computedAgrees(t *rapid.T) {
	text := anyComputed(t)
	c, err := rule.ParseComputed([]byte(text))
	if err != nil {
		t.Fatalf("parse %s: %v", text, err)
	}
	printed, err := c.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	again, err := rule.ParseComputed(printed)
	if err != nil {
		t.Fatalf("parse %s: %v", printed, err)
	}
	reprinted, err := again.MarshalJSON()
	if err != nil || !bytes.Equal(printed, reprinted) || !bytes.Equal(c.Behaviour().Canonical(), again.Behaviour().Canonical()) {
		t.Fatalf("printed as %s, then as %s, error %v", printed, reprinted, err)
	}
	tree := decode(t, text).(map[string]any)
	n, _ := anyHistory(t)
	tl := folded(c.Behaviour(), n.events)
	want := n.computed(t, tree)
	got, until := c.Value(tl, time.UnixMilli(n.now))
	if naiveText(decode(t, string(got))) != naiveText(want) {
		t.Fatalf("%s at %d: %s, want %v", text, n.now, got, want)
	}
	now, end := n.now, n.now+20_000_000
	if !until.IsZero() {
		if end = until.UnixMilli(); end <= now {
			t.Fatalf("%s at %d: until is %d", text, now, end)
		}
	}
	instants := []int64{end - 1, (now + end) / 2}
	for _, e := range n.events {
		for _, d := range []int64{0, 1000, 3000, 5000, 60_000, 3_600_000} {
			instants = append(instants, e.at+d, e.at+d+1, e.at+d+1000-(e.at+d)%1000)
		}
	}
	for _, at := range instants {
		if n.now = at; now <= at && at < end && naiveText(n.computed(t, tree)) != naiveText(want) {
			t.Fatalf("%s at %d: %s until %d, but not at %d", text, now, got, end, at)
		}
	}
}

func TestParseComputedListsEveryProblem(t *testing.T) {
	t.Parallel()
	const aggregates = "count, sum, avg, min, max, distinct, first, last"
	for _, tt := range []struct {
		name, give string
		want       []rule.Problem
	}{
		{"nothing", `{}`, []rule.Problem{{"#", "must have event"}, {"#", "must have one of " + aggregates}}},
		{"no object", `[]`, []rule.Problem{{"#", "must be an object"}}},
		{"two aggregates and two windows", `{"event":"E","sum":{"property":"n"},"count":{},"within":"1d","between":{"from":"2026-01-01"}}`, []rule.Problem{
			{"#", "has sum and count, of which there may be only one"},
			{"#", "has within and between, of which there may be only one"},
		}},
		{"bounds", `{"event":"E","sum":{"property":"n","gte":1}}`, []rule.Problem{{"#/sum/gte", "is unknown; known here are property"}}},
		{"a count of something", `{"event":"E","count":{"gte":1}}`, []rule.Problem{{"#/count", "must be an empty object"}}},
		{"no property", `{"event":"E","distinct":{}}`, []rule.Problem{{"#/distinct", "must have property"}}},
		{"an empty property", `{"event":"E","first":{"property":""}}`, []rule.Problem{{"#/first/property", "must not be empty"}}},
		{"something unknown", `{"event":"E","count":{},"median":{}}`, []rule.Problem{{"#/median", "is unknown; known here are event, where, " + aggregates + ", within, between"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, err := rule.ParseComputed([]byte(tt.give))
			var e *rule.Error
			if !errors.As(err, &e) {
				t.Fatalf("parsed as %v with error %v, want an *Error", c, err)
			}
			slices.SortStableFunc(e.Problems, func(a, b rule.Problem) int { return cmp.Compare(a.Pointer, b.Pointer) })
			if diff := gocmp.Diff(tt.want, e.Problems); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

// What ParseComputed accepts, it prints in a form that it reads back the same.
func FuzzParseComputed(f *testing.F) {
	for _, s := range []string{
		`{"event":"E","where":[{"property":"s","op":"in","value":["a",1e3]}],"sum":{"property":"a.b"},"within":"30d"}`,
		`{"event":"E","first":{},"between":{"from":"2026-01-01","to":1800000000}}`,
		`{"event":"E","count":{},"within":"1w"}`,
		`{"event":"E","distinct":{"property":"p"}}`,
		`{"event":"E","avg":{}}`, `{"event":`, ``,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := rule.ParseComputed(b)
		if err != nil {
			var e *rule.Error
			if !errors.As(err, &e) || len(e.Problems) == 0 {
				t.Fatalf("error is %v, want an *Error", err)
			}
			return
		}
		printed, err := c.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		again, err := rule.ParseComputed(printed)
		if err != nil {
			t.Fatalf("printed as %s: %v", printed, err)
		}
		reprinted, err := again.MarshalJSON()
		if err != nil || !bytes.Equal(printed, reprinted) || c.Describe() != again.Describe() {
			t.Fatalf("printed as %s, then as %s, error %v", printed, reprinted, err)
		}
		if v, until := c.Value(c.Behaviour().Empty(), noon); !v.IsValid() || !until.IsZero() {
			t.Fatalf("%s of nothing is %s until %v", printed, v, until)
		}
	})
}
