package rule_test

import (
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/mubatch/mubatch/profiles/rule"
	"github.com/mubatch/mubatch/profiles/timeline"
)

func TestExplain(t *testing.T) {
	t.Parallel()
	r := parse(t, `{"all":[
		{"trait":"country","op":"in","value":["DE","FR"]},
		{"trait":"tags.name","op":"not_exists"},
		{"not":{"event":"Bought","count":{"gte":2},"within":"1d"}},
		{"any":[
			{"event":"Bought","sum":{"property":"revenue","gte":100},"within":"30d"},
			{"event":"Bought","avg":{"property":"revenue","lt":30}},
			{"event":"Bought","last":{"property":"coupon","op":"eq","value":"X"},"within":"1d"},
			{"event":"Bought","first":{"op":"more_than_ago","value":"1h"}},
			{"event":"Bought","distinct":{"property":"coupon","gte":1},"between":{"from":"2026-01-01","to":"2027-01-01"}},
			{"event":"Bought","min":{"property":"discount","gte":1}},
			{"event":"Viewed","count":{"gte":1},"within":"1d"}
		]},
		{"sequence":[{"event":"Viewed"},{"event":"Bought","within":"1h"}],"within":"2d"},
		{"consent":"ad_storage","is":"granted"},
		{"segment":"vip"}
	]}`)
	p := remember(r, map[string]string{"country": `"FR"`, "tags": `[{"name":"a"},{"name":["b"]}]`}, []naiveEvent{
		{"Viewed", `{}`, noon.Add(-3 * time.Hour).UnixMilli()},
		{"Viewed", `{}`, noon.Add(-40 * time.Minute).UnixMilli()},
		{"Bought", `{"revenue":20.5,"coupon":"X"}`, noon.Add(-30 * time.Minute).UnixMilli()},
		{"Bought", `{"revenue":20}`, noon.Add(-48 * time.Hour).UnixMilli()},
		{"Bought", `{"revenue":21}`, noon.Add(-47 * time.Hour).UnixMilli()},
	})
	p.consents = map[string]bool{"ad_storage": true}
	p.segments = map[string]bool{"vip": true}

	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	type node = rule.Explanation
	want := &node{
		Pointer: "#", Kind: "all", Holds: false,
		Nodes: []*node{
			{Pointer: "#/all/0", Kind: "trait", Text: `whose country is one of "DE", "FR"`, Holds: true, Observed: jsontext.Value(`"FR"`)},
			{Pointer: "#/all/1", Kind: "trait", Text: `whose tags.name is not known`, Holds: false, Observed: jsontext.Value(`["a",["b"]]`)},
			{
				Pointer: "#/all/2", Kind: "not", Text: `who did "Bought" fewer than 2 times in the last 1 day`, Holds: true,
				Nodes: []*node{{
					Pointer: "#/all/2/not", Kind: "event", Text: `who did "Bought" at least 2 times in the last 1 day`, Observed: jsontext.Value(`1`),
					Behaviours: []int{0}, From: at("2026-02-28T12:00:00.001Z"),
				}},
			},
			{Pointer: "#/all/3", Kind: "any", Holds: true, Nodes: []*node{
				{
					Pointer: "#/all/3/any/0", Kind: "event", Text: `whose sum of revenue over "Bought" in the last 30 days is at least 100`, Observed: jsontext.Value(`61.5`),
					Behaviours: []int{1}, From: at("2026-01-30T12:00:00Z"),
				},
				{
					Pointer: "#/all/3/any/1", Kind: "event", Text: `whose average revenue over "Bought" is less than 30`, Holds: true,
					Observed: jsontext.Value(`20.5`), Behaviours: []int{2},
				},
				{
					Pointer: "#/all/3/any/2", Kind: "event", Text: `whose last coupon in "Bought" in the last 1 day is "X"`, Holds: true, Until: at("2026-03-02T11:30:00Z"),
					Observed: jsontext.Value(`"X"`), Behaviours: []int{3}, From: at("2026-02-28T12:00:00.001Z"),
				},
				{
					Pointer: "#/all/3/any/3", Kind: "event", Text: `whose first "Bought" is at least as long ago as 1 hour`, Holds: true,
					Observed: jsontext.Value(`"2026-02-27T12:00:00.000Z"`), Behaviours: []int{0},
				},
				{
					Pointer: "#/all/3/any/4", Kind: "event",
					Text:  `whose number of different values of coupon over "Bought" from 2026-01-01T00:00:00Z up to 2027-01-01T00:00:00Z is at least 1`,
					Holds: true, Observed: jsontext.Value(`1`), Behaviours: []int{4}, From: at("2026-01-01T00:00:00Z"),
				},
				{Pointer: "#/all/3/any/5", Kind: "event", Text: `whose smallest discount over "Bought" is at least 1`, Behaviours: []int{5}},
				{
					Pointer: "#/all/3/any/6", Kind: "event", Text: `who did "Viewed" in the last 1 day`, Holds: true, Until: at("2026-03-02T11:20:00Z"),
					Observed: jsontext.Value(`2`), Behaviours: []int{6}, From: at("2026-02-28T12:00:00.001Z"),
				},
			}},
			{
				Pointer: "#/all/4", Kind: "sequence", Text: `who did "Viewed", then "Bought" within 1 hour, all begun in the last 2 days`, Holds: true,
				Until: at("2026-03-03T11:20:00Z"), Observed: jsontext.Value(`["2026-03-01T11:20:00.000Z","2026-03-01T11:30:00.000Z"]`), Behaviours: []int{0, 6},
				From: at("2026-02-27T12:00:00.001Z"),
			},
			{Pointer: "#/all/5", Kind: "consent", Text: `whose consent to "ad_storage" is granted`, Holds: true, Observed: jsontext.Value(`"granted"`)},
			{Pointer: "#/all/6", Kind: "segment", Segment: "vip", Text: `who is in the segment "vip"`, Holds: true},
		},
	}
	got := r.Explain(p, noon)
	if !strings.HasPrefix(got.Text, `whose country is one of "DE", "FR" and `) {
		t.Errorf("text is %s", got.Text)
	}
	got.Text, got.Nodes[3].Text = "", ""
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("explanation (-want +got):\n%s", diff)
	}
}

// If more has been than is known, that is said.
func TestExplainSaysWhatIsNotKnown(t *testing.T) {
	t.Parallel()
	did := func(ago ...time.Duration) (list []naiveEvent) {
		for i, d := range ago {
			list = append(list, naiveEvent{"E", `{"p":` + strings.Repeat("1", i+1) + `}`, noon.Add(-d).UnixMilli()})
		}
		return list
	}
	for _, tt := range []struct {
		rule   string
		events []naiveEvent
		want   string
	}{
		{`{"event":"E","count":{"gte":2},"within":"1d"}`, did(1, 2, 3), `{"at_least":2}`},
		{`{"event":"E","count":{"gte":2},"within":"1d"}`, did(1, 2), `2`},
		{`{"event":"E","count":{"gte":2},"within":"1d"}`, did(1, 24*time.Hour, 25*time.Hour), `1`},
		{`{"event":"E","count":{"gte":2}}`, did(1, 2, 3), `3`},
		{`{"event":"E","count":{"gte":2}}`, nil, `0`},
		{`{"event":"E","distinct":{"property":"p","lt":2}}`, did(1, 2, 3), `{"at_least":2}`},
		{`{"event":"E","distinct":{"property":"p","lt":4}}`, did(1, 2, 3), `3`},
		{`{"event":"E","distinct":{"property":"p","eq":0}}`, nil, `0`},
	} {
		r := parse(t, tt.rule)
		if got := string(r.Explain(remember(r, nil, tt.events), noon).Observed); got != tt.want {
			t.Errorf("%s: observed %s, want %s", tt.rule, got, tt.want)
		}
	}
	r := parse(t, `{"any":[{"event":"E","distinct":{"property":"p","gte":3}},{"event":"E","sum":{"property":"p","gte":3},"within":"1d"},{"event":"E","count":{"gte":3},"within":"1d"}]}`)
	x := r.Explain(profile{timelines: make([]timeline.Timeline, 3)}, noon)
	for i, want := range []string{"0", "0", "0"} {
		if got := string(x.Nodes[i].Observed); got != want {
			t.Errorf("of nothing: %s observed %s, want %s", x.Nodes[i].Text, got, want)
		}
	}
}

// An explanation says of every condition what evaluating it alone says.
func TestExplainAgreesWithEval(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := parse(t, anyRule(t, 3))
		n, state := anyHistory(t)
		now := time.UnixMilli(n.now)
		state.timelines = remember(r, nil, n.events).timelines
		printed, err := r.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		var check func(x *rule.Explanation, tree any)
		check = func(x *rule.Explanation, tree any) {
			part := tree
			for _, step := range strings.Split(x.Pointer, "/")[1:] {
				if list, ok := part.([]any); ok {
					part = list[int(step[0]-'0')]
				} else {
					part = part.(map[string]any)[step]
				}
			}
			alone := parse(t, encode(t, part))
			s := state
			s.timelines = remember(alone, nil, n.events).timelines
			holds, until := alone.Eval(s, now)
			if x.Holds != holds || !x.Until.Equal(until) || "Everyone "+x.Text+"." != alone.Describe() {
				t.Fatalf("%s: %+v, but alone %v until %v", x.Pointer, x, holds, until)
			}
			for _, x := range x.Nodes {
				check(x, tree)
			}
		}
		check(r.Explain(state, now), decode(t, string(printed)))
	})
}
