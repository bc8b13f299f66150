package profiles_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	gocmp "github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
	"github.com/mubatch/mubatch/profiles/rule"
)

func (w *town) explain(user string, segment int64) *profiles.Explained {
	w.t.Helper()
	p, err := w.reader.ByIdentifier(w.t.Context(), 1, profilestest.Secret, profiles.Identifier{Kind: profiles.UserID, Value: user})
	if err != nil {
		w.t.Fatal(err)
	}
	x, err := w.reader.Explain(w.t.Context(), p, segment)
	if err != nil {
		w.t.Fatal(err)
	}
	return x
}

func TestAMembershipIsExplained(t *testing.T) {
	t.Parallel()
	w := newTown(t, 3)
	segment := w.segment("good", `{"all": [
		{"event": "Order", "where": [{"property": "revenue", "op": "gte", "value": 50}], "count": {"gte": 2}, "within": "30d"},
		{"not": {"event": "Order", "count": {"gte": 20}}},
		{"any": [{"trait": "country", "op": "eq", "value": "DE"}, {"event": "Refund"}]}]}`)
	now := time.Now().Truncate(time.Millisecond)
	for i := range 15 {
		e := profilestest.Event{
			ID: fmt.Sprint("m", i), Type: "track", Event: "Order", User: "u", Anon: "a", Revenue: 40 + i, At: now.Add(-time.Duration(20-i) * time.Hour),
		}
		if i%2 == 0 {
			e.User = "" // the visitor's events are among them
		}
		w.apply(e.Message())
	}
	w.apply(
		profilestest.Event{ID: "old", Type: "track", Event: "Order", User: "u", Revenue: 99, At: now.AddDate(0, 0, -31)}.Message(),
		profilestest.Event{ID: "who", Type: "identify", User: "u", Traits: map[string]any{"country": "DE"}, At: now}.Message(),
	)
	x := w.explain("u", segment)
	if !x.Member || !x.Explanation.Holds || x.Version != 1 || time.Since(x.Since) > time.Minute {
		t.Errorf("%+v", x)
	}
	if want := (profiles.Cause{Kind: profiles.CauseEvent, Source: 1, MessageID: "who"}); x.Cause != want {
		t.Errorf("the cause is %+v, want %+v", x.Cause, want)
	}
	if want := now.Add(-7*time.Hour).AddDate(0, 0, 30); !x.Due.Equal(want) { // the second newest with a revenue of 50 is m13
		t.Errorf("it may change at %v, want %v", x.Due, want)
	}
	nodes := map[string]*rule.Explanation{}
	var walk func(n *rule.Explanation)
	walk = func(n *rule.Explanation) {
		nodes[n.Pointer] = n
		for _, c := range n.Nodes {
			walk(c)
		}
	}
	walk(x.Explanation)
	holds := map[string]bool{}
	events := map[string][]string{}
	for at, n := range nodes {
		holds[at] = n.Holds
		for _, e := range x.Events[n] {
			events[at] = append(events[at], e.MessageID)
		}
	}
	wantHolds := map[string]bool{
		"#": true, "#/all/0": true, "#/all/1": true, "#/all/1/not": false, "#/all/2": true, "#/all/2/any/0": true, "#/all/2/any/1": false,
	}
	if diff := gocmp.Diff(wantHolds, holds); diff != "" {
		t.Errorf("what holds (-want +got):\n%s", diff)
	}
	wantEvents := map[string][]string{
		"#/all/0":     {"m14", "m13", "m12", "m11", "m10"}, // not the old one
		"#/all/1/not": {"m14", "m13", "m12", "m11", "m10", "m9", "m8", "m7", "m6", "m5"},
	}
	if diff := gocmp.Diff(wantEvents, events); diff != "" {
		t.Errorf("events used (-want +got):\n%s", diff)
	}
	first := x.Events[nodes["#/all/0"]][0]
	if !first.At.Equal(now.Add(-6*time.Hour)) || first.Source != 1 || !gocmp.Equal(first.Properties, map[string]jsontext.Value{"revenue": jsontext.Value("54")}) {
		t.Errorf("the newest event: %+v", first)
	}
	if got := x.Events[nodes["#/all/1/not"]][0].Properties; len(got) > 0 {
		t.Errorf("a condition that reads no properties shows %v", got)
	}

	w.apply(profilestest.Event{ID: "moved", Type: "identify", User: "u", Traits: map[string]any{"country": "FR"}, At: now.Add(time.Second)}.Message())
	x = w.explain("u", segment)
	if x.Member || x.Explanation.Holds || x.Cause.MessageID != "moved" {
		t.Errorf("after leaving: %+v", x)
	}
	w.apply(profilestest.Event{ID: "other", Type: "track", Event: "Visit", User: "v", At: now}.Message())
	if x = w.explain("v", segment); x.Member || !x.Since.IsZero() || x.Cause.Kind != "" || !x.Due.IsZero() {
		t.Errorf("of somebody who was never in it: %+v", x)
	}
}

func TestAnExplanationIsOfTheVersionThatAnswers(t *testing.T) {
	t.Parallel()
	w := newTown(t, 2)
	w.apply(profilestest.Event{ID: "m1", Type: "track", Event: "Order", User: "u", At: time.Now()}.Message())
	segment := w.define("s", `{"event": "Order"}`)
	explained := func(version int, member, holds bool, says string) {
		t.Helper()
		x := w.explain("u", segment)
		if x.Version != version || x.Member != member || x.Explanation.Holds != holds || x.Rule.Describe() != says {
			t.Errorf("version %d, member %v, holds %v: %s; want %d, %v, %v: %s",
				x.Version, x.Member, x.Explanation.Holds, x.Rule.Describe(), version, member, holds, says)
		}
	}
	orders, refunds := `Everyone who did "Order".`, `Everyone who did "Refund".`
	explained(0, false, true, orders) // what it will be
	w.build()
	explained(1, true, true, orders)
	_, err := w.segments.Update(t.Context(), 1, profiles.SegmentRef{ID: segment}, profiles.SegmentChange{Rule: []byte(`{"event": "Refund"}`)})
	if err != nil {
		t.Fatal(err)
	}
	explained(1, true, true, orders)
	for _, l := range w.lanes {
		if err := l.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	explained(1, true, true, orders)
	w.build()
	explained(2, false, false, refunds)
}

func TestWhatIsReferredToMayChangeAMembership(t *testing.T) {
	t.Parallel()
	w := newTown(t, 3)
	order := w.segment("order", `{"event": "Order", "within": "30d"}`)
	visit := w.segment("visit", `{"event": "Visit", "within": "7d"}`)
	both := w.segment("both", `{"all": [{"segment": "order"}, {"segment": "visit"}]}`)
	neither := w.segment("neither", `{"not": {"any": [{"segment": "both"}, {"segment": "order"}, {"event": "Refund"}]}}`)
	either := w.segment("either", `{"any": [{"segment": "both"}, {"segment": "order"}]}`)
	ever := w.segment("ever", `{"any": [{"segment": "both"}, {"event": "Order"}]}`)
	now := time.Now().Truncate(time.Millisecond)
	w.apply(
		profilestest.Event{ID: "m1", Type: "track", Event: "Order", User: "u", At: now}.Message(),
		profilestest.Event{ID: "m2", Type: "track", Event: "Visit", User: "u", At: now}.Message(),
	)
	week, month := now.AddDate(0, 0, 7), now.AddDate(0, 0, 30)
	for segment, want := range map[int64]time.Time{order: month, visit: week, both: week, neither: month, either: month, ever: {}} {
		x := w.explain("u", segment)
		if x.Member == (segment == neither) || !x.Due.Equal(want) || !x.Explanation.Until.Equal(want) {
			t.Errorf("segment %d: member %v until %v, by the explanation %v; want %v", segment, x.Member, x.Due, x.Explanation.Until, want)
		}
	}
	p, err := w.reader.ByIdentifier(t.Context(), 1, profilestest.Secret, profiles.Identifier{Kind: profiles.UserID, Value: "u"})
	if err != nil {
		t.Fatal(err)
	}
	list, err := w.reader.Memberships(t.Context(), p, 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	got := map[int64]time.Time{}
	for _, m := range list {
		got[m.Segment] = m.Due.UTC()
	}
	week, month = week.UTC(), month.UTC()
	want := map[int64]time.Time{order: month, visit: week, both: week, either: week, ever: week} // not later than it can be
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("until when the memberships stay (-want +got):\n%s", diff)
	}
}
