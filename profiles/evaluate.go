package profiles

import (
	"math"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/profiles/timeline"
)

// How memberships follow from what happened. Of all segments only those are evaluated that can have changed: what a
// fragment brought or took along leads to the segments that read it, a membership that changed to the segments that refer
// to it, and a due time to its own.

// touch says that a membership may be another now, and why. When it has been touched before in the same step, what was
// true in between is in it, so that of several events in one µbatch the one is named that made the difference.
type touch struct {
	cause Cause // of the last time
	known bool  // whether holds is what was true before that
	holds bool
	by    Cause // what made holds so, if that was another membership than before the step
}

// mark notes that something is about to happen to a profile which may change the membership in a segment.
func (s *step) mark(p *ownedProfile, e *evaluated, cause Cause) {
	t, again := p.touched[e.ID]
	if again && t.cause == cause {
		return
	}
	if again {
		before := t.known && t.holds || !t.known && p.member(e.ID)
		if t.holds, _ = s.eval(p, e); t.holds != before {
			t.by = t.cause
		}
		t.known = true
	}
	t.cause = cause
	if p.touched == nil {
		p.touched = map[int64]touch{}
	}
	p.touched[e.ID] = t
}

// touch marks the segments that read anything of what a fragment holds, before it comes or goes.
func (s *step) touch(p *ownedProfile, f *Fragment, cause Cause) {
	defs := s.in.Definitions[p.Workspace]
	for i := range f.Timelines {
		for _, e := range defs.byBehaviour[f.Timelines[i].Behaviour] {
			s.mark(p, e, cause)
		}
	}
	for i := range f.Traits {
		for _, e := range defs.byTrait[f.Traits[i].Name] {
			s.mark(p, e, cause)
		}
	}
	for i := range f.Consent {
		for _, e := range defs.byConsent[f.Consent[i].Purpose] {
			s.mark(p, e, cause)
		}
	}
}

// evaluate brings the memberships of every profile the step owns up to the present.
func (s *step) evaluate() {
	owned := make([]*ownedProfile, 0, len(s.owned))
	for _, p := range s.owned {
		owned = append(owned, p)
	}
	slices.SortFunc(owned, func(a, b *ownedProfile) int { return slices.Compare(a.ID[:], b.ID[:]) })
	for _, p := range owned {
		s.evaluateProfile(p)
		ref := Ref{p.Workspace, p.ID}
		if !p.changed || p.before == nil && len(p.Fragments) == 0 {
			continue
		}
		s.out.Before[ref] = p.before
		if len(p.Fragments) == 0 {
			s.out.Profiles[ref] = nil
			continue
		}
		p.forget(s.in.Definitions[p.Workspace].retired)
		s.out.Profiles[ref] = p.Profile
	}
}

func (s *step) evaluateProfile(p *ownedProfile) {
	defs := s.in.Definitions[p.Workspace]
	for _, st := range p.Standings {
		_, touched := p.touched[st.Segment]
		switch e := defs.evaluated(st.Segment); {
		case len(p.Fragments) == 0 && p.left != nil:
			s.mark(p, e, *p.left)
		case !touched && st.Due != 0 && st.Due <= s.now:
			s.mark(p, e, Cause{Kind: CauseTimer})
		}
	}
	if len(p.touched) == 0 {
		return
	}
	queue := make([]*evaluated, 0, len(p.touched))
	for id := range p.touched {
		queue = append(queue, defs.evaluated(id))
	}
	slices.SortFunc(queue, (*evaluated).compare)
	for i := 0; i < len(queue); i++ { // it grows by segments further back
		e := queue[i]
		cause, changed := s.decide(p, e)
		if !changed {
			continue
		}
		for _, d := range e.dependents {
			if _, queued := p.touched[d.ID]; !queued {
				s.mark(p, d, cause)
				at, _ := slices.BinarySearchFunc(queue, d, (*evaluated).compare)
				queue = slices.Insert(queue, at, d)
			}
		}
	}
	p.Standings = slices.DeleteFunc(p.Standings, func(st Standing) bool { return !st.Member && st.Due == 0 })
}

// decide brings one membership up to the present, and tells whether it changed and why.
func (s *step) decide(p *ownedProfile, e *evaluated) (cause Cause, changed bool) {
	holds, due := s.eval(p, e)
	st := p.standing(e.ID)
	if st.Due != due {
		st.Due = due
		p.changed = true
	}
	if st.Member == holds {
		return Cause{}, false
	}
	t := p.touched[e.ID]
	cause = t.cause
	if t.known && t.holds == holds {
		cause = t.by
	}
	st.Member, st.Since = holds, s.now
	p.changed = true
	s.out.Transitions = append(s.out.Transitions, Transition{
		Workspace: p.Workspace,
		Segment:   e.ID,
		Profile:   p.ID,
		Entered:   holds,
		At:        s.now,
		Cause:     cause,
	})
	return cause, true
}

// eval tells whether somebody belongs in a segment, and when that may change by itself. A profile without fragments
// belongs nowhere, nor does anybody in a segment that is no more.
func (s *step) eval(p *ownedProfile, e *evaluated) (holds bool, due int64) {
	if e.Rule == nil || len(p.Fragments) == 0 {
		return false, 0
	}
	holds, until := e.Rule.Eval(view{p.Profile, s.in.Definitions[p.Workspace], e.Segment}, s.in.Now)
	if !until.IsZero() && until.Before(never) {
		due = ceilMilli(until)
	}
	return holds, due
}

// never is later than what databases and people can tell: nobody waits for what would happen then.
var never = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

// ceilMilli rounds up, so that a timer never rings before its time.
func ceilMilli(t time.Time) int64 {
	ms := t.UnixMilli()
	if t.Nanosecond()%int(time.Millisecond) != 0 && ms < math.MaxInt64 {
		ms++
	}
	return ms
}

// view shows a rule what it asks of a profile.
type view struct {
	profile     *Profile
	definitions *Definitions
	segment     *Segment
}

func (v view) Trait(name string) (jsontext.Value, bool) { return v.profile.Trait(name) }

func (v view) Timeline(i int) timeline.Timeline { return v.profile.timeline(v.segment.Behaviours[i]) }

func (v view) Consent(purpose string) (granted, known bool) { return v.profile.consent(purpose) }

func (v view) Segment(key string) bool {
	e := v.definitions.byKey[key]
	return e != nil && v.profile.member(e.ID)
}

// nobody is somebody of whom nothing is known, but of which segments they are.
type nobody struct{ in map[string]bool }

func (nobody) Trait(string) (jsontext.Value, bool) { return nil, false }

func (nobody) Timeline(int) timeline.Timeline { return timeline.Timeline{} }

func (nobody) Consent(string) (granted, known bool) { return false, false }

func (n nobody) Segment(key string) bool { return n.in[key] }
