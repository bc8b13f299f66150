package profiles_test

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
	"github.com/mubatch/mubatch/profiles/rule"
)

// alone is a lane on its own, for tests of single steps.
type alone struct {
	t     testing.TB
	defs  map[int32]*profiles.Definitions
	state *profiles.State
	now   time.Time
	seq   int
}

// keyed is a segment's key and rule.
type keyed struct{ key, rule string }

func newAlone(t testing.TB, segments ...keyed) *alone {
	t.Helper()
	o := &alone{t: t, state: profiles.NewState(), now: profilestest.Start}
	o.define(segments...)
	return o
}

func (o *alone) define(segments ...keyed) {
	o.t.Helper()
	var behaviours []*profiles.Behaviour
	var list []*profiles.Segment
	for i, s := range segments {
		r, err := rule.Parse([]byte(s.rule))
		if err != nil {
			o.t.Fatal(err)
		}
		segment := &profiles.Segment{ID: int64(i + 1), Key: s.key, Version: 1, Rule: r}
		for _, b := range r.Behaviours() {
			id := int32(len(behaviours) + 1)
			behaviours = append(behaviours, &profiles.Behaviour{ID: id, Behaviour: b})
			segment.Behaviours = append(segment.Behaviours, id)
		}
		list = append(list, segment)
	}
	o.defs = map[int32]*profiles.Definitions{1: profiles.NewDefinitions(1, profilestest.Secret, behaviours, list)}
}

// step applies messages and says what came of it, such as "+1 event e1" for an entering of segment 1.
func (o *alone) step(in profiles.Input) []string {
	o.t.Helper()
	in.Lanes, in.Now, in.Definitions, in.State = 1, o.now, o.defs, o.state
	for {
		out, missing := profiles.Step(in)
		if missing == nil {
			for ref, p := range out.Profiles {
				o.state.Profiles[ref.Key] = p
			}
			for ref, r := range out.Routes {
				o.state.Routes[ref.Key] = r
			}
			var said []string
			for _, t := range out.Transitions {
				sign := "-"
				if t.Entered {
					sign = "+"
				}
				said = append(said, fmt.Sprint(sign, t.Segment, " ", t.Cause.Kind, " ", t.Cause.MessageID))
			}
			return said
		}
		for ref := range missing.Profiles {
			o.state.Profiles[ref.Key] = nil
		}
		for ref := range missing.Routes {
			o.state.Routes[ref.Key] = nil
		}
		for ref := range missing.Claims {
			o.state.Claims[ref.Pair] = nil
		}
	}
}

func (o *alone) event(e profilestest.Event) []string {
	o.t.Helper()
	o.seq++
	if e.At.IsZero() {
		e.At = o.now
	}
	e.ID, e.User = fmt.Sprint("e", o.seq), cmp.Or(e.User, "ada")
	return o.step(profiles.Input{Messages: []profiles.Message{e.Message()}})
}

func (o *alone) ring() []string {
	o.t.Helper()
	key := profilestest.Secret.Key(profiles.Identifier{Kind: "user_id", Value: "ada"})
	return o.step(profiles.Input{Due: []profiles.Ref{{Workspace: 1, Key: key}}})
}

func (o *alone) expect(what string, got []string, want ...string) {
	o.t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	if d := gocmp.Diff(want, got); d != "" {
		o.t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestReferencesFollowInTheSameStep(t *testing.T) {
	t.Parallel()
	o := newAlone(
		t,
		keyed{"outer", `{"all":[{"segment":"middle"},{"not":{"segment":"lapsed"}}]}`},
		keyed{"middle", `{"segment":"vip"}`},
		keyed{"vip", `{"trait":"plan","op":"eq","value":"pro"}`},
		keyed{"lapsed", `{"not":{"event":"Order","within":"10s"}}`},
		keyed{"nobody", `{"segment":"no_such_segment"}`},
		keyed{"others", `{"not":{"segment":"vip"}}`},
	)
	pro := map[string]any{"plan": "pro"}
	o.expect("a person of whom nothing else is known", o.event(profilestest.Event{Type: "identify"}), "+4 event e1", "+6 event e1")
	o.expect("a trait", o.event(profilestest.Event{Type: "identify", Traits: pro}), "+2 event e2", "+3 event e2", "-6 event e2")
	o.expect("an order", o.event(profilestest.Event{Type: "track", Event: "Order"}), "-4 event e3", "+1 event e3")
	o.expect("nothing that matters", o.event(profilestest.Event{Type: "track", Event: "Other"}))
	o.now = o.now.Add(10*time.Second - time.Millisecond)
	o.expect("just before the window ends", o.ring())
	o.now = o.now.Add(time.Millisecond)
	o.expect("the window's end", o.ring(), "+4 timer ", "-1 timer ")
	o.expect("the trait is taken away", o.event(profilestest.Event{Type: "identify", Traits: map[string]any{"plan": nil}}),
		"-2 event e5", "-3 event e5", "+6 event e5")
}

// Who is kept out of a segment by the first thing that is known of them never enters it; what refers to it is true all the
// same.
func TestReferencesToWhatSomebodyNeverEntered(t *testing.T) {
	t.Parallel()
	o := newAlone(
		t,
		keyed{"again", `{"all":[{"segment":"known"},{"not":{"segment":"unknown"}}]}`},
		keyed{"known", `{"not":{"segment":"unknown"}}`},
		keyed{"unknown", `{"trait":"plan","op":"not_exists"}`},
	)
	free := map[string]any{"plan": "free"}
	o.expect("the first thing known", o.event(profilestest.Event{Type: "identify", Traits: free}), "+1 event e1", "+2 event e1")
}

// Of the events of one µbatch that a rule counts, the one is named with which the membership changed.
func TestTheEventThatMadeTheDifferenceIsTheCause(t *testing.T) {
	t.Parallel()
	o := newAlone(
		t,
		keyed{"two", `{"event":"Order","count":{"gte":2}}`},
		keyed{"few", `{"event":"Order","count":{"lte":3}}`},
		keyed{"pro", `{"trait":"plan","op":"eq","value":"pro"}`},
	)
	batch := func(list ...profilestest.Event) []string {
		var messages []profiles.Message
		for _, e := range list {
			o.seq++
			e.ID, e.User, e.At = fmt.Sprint("e", o.seq), "ada", o.now.Add(time.Duration(o.seq)*time.Millisecond)
			messages = append(messages, e.Message())
		}
		return o.step(profiles.Input{Messages: messages})
	}
	order := profilestest.Event{Type: "track", Event: "Order"}
	plan := func(name any) profilestest.Event {
		return profilestest.Event{Type: "identify", Traits: map[string]any{"plan": name}}
	}
	o.expect("the first events of somebody", batch(plan("free"), order, order, order), "+1 event e3", "+2 event e1")
	o.expect("there and back", batch(plan("pro"), plan("free")))
	o.expect("there, back and there", batch(plan("pro"), plan("free"), plan("pro"), order), "+3 event e9", "-2 event e10")
}

func TestASweepReachesDependents(t *testing.T) {
	t.Parallel()
	key := profilestest.Secret.Key(profiles.Identifier{Kind: "user_id", Value: "ada"})
	vip := keyed{"vip", `{"trait":"plan","op":"eq","value":"pro"}`}
	o := newAlone(t, vip, keyed{"others", `{"not":{"segment":"vip"}}`})
	o.expect("before", o.event(profilestest.Event{Type: "identify", Traits: map[string]any{"plan": "free"}}), "+2 event e1")
	o.define(keyed{"vip", `{"trait":"plan","op":"eq","value":"free"}`}, keyed{"others", `{"not":{"segment":"vip"}}`})
	sweep := profiles.Sweep{Segment: 1, Profiles: []profiles.Ref{{Workspace: 1, Key: key}}, Cause: profiles.CauseEdit}
	o.expect("an edit", o.step(profiles.Input{Sweep: &sweep}), "+1 edit ", "-2 edit ")
	o.expect("the same again", o.step(profiles.Input{Sweep: &sweep}))
}

func TestConsentIsPartOfRules(t *testing.T) {
	t.Parallel()
	o := newAlone(
		t,
		keyed{"yes", `{"consent":"ad_storage","is":"granted"}`},
		keyed{"no", `{"consent":"ad_storage","is":"denied"}`},
		keyed{"unasked", `{"consent":"ad_storage","is":"unknown"}`},
	)
	decide := func(granted bool, at time.Time) []string {
		o.seq++
		m := profilestest.Event{ID: fmt.Sprint("e", o.seq), Type: "track", Event: "Decided", User: "ada", At: at}.Message()
		consent := fmt.Sprintf(`{"context":{"consent":{"ad_storage":%t}},`, granted)
		m.Body = append([]byte(consent), m.Body[1:]...)
		return o.step(profiles.Input{Messages: []profiles.Message{m}})
	}
	o.expect("at first", o.event(profilestest.Event{Type: "track", Event: "Other"}), "+3 event e1")
	o.expect("granted", decide(true, o.now), "-3 event e2", "+1 event e2")
	o.expect("an older refusal that comes late", decide(false, o.now.Add(-time.Second)))
	o.expect("withdrawn", decide(false, o.now.Add(time.Second)), "-1 event e4", "+2 event e4")
}

// However many segments there are, a step costs what it touches: here five of them, whether the person is known or new.
func BenchmarkStep(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		var segments []keyed
		for i := range n {
			segments = append(segments, keyed{
				fmt.Sprint("s", i),
				fmt.Sprintf(`{"all":[{"event":"Event %d","count":{"gte":%d},"within":"30d"},{"not":{"trait":"plan","op":"eq","value":"pro"}}]}`, i/5, 2+i%5),
			})
		}
		b.Run(fmt.Sprint("known/segments=", n), func(b *testing.B) {
			o := newAlone(b, segments...)
			for b.Loop() {
				o.event(profilestest.Event{Type: "track", Event: "Event 1"})
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
		b.Run(fmt.Sprint("new/segments=", n), func(b *testing.B) {
			o := newAlone(b, segments...)
			for b.Loop() {
				o.event(profilestest.Event{Type: "track", Event: "Event 1", User: fmt.Sprint("u", o.seq)})
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
