package profiles

import (
	"cmp"
	"slices"
	"time"

	"github.com/mubatch/mubatch/profiles/rule"
)

// Behaviour is a behaviour under its id.
type Behaviour struct {
	ID int32
	rule.Behaviour
}

// Segment is a segment's rule as a lane evaluates it. Behaviours are the ids of the rule's behaviours, in its order. Other
// segments refer to it by its key.
type Segment struct {
	ID         int64
	Key        string
	Version    int
	Rule       *rule.Rule
	Behaviours []int32
}

// Definitions is what a lane knows of one workspace between two µbatches: what to fold and what to evaluate.
type Definitions struct {
	Workspace int32
	Secret    Secret

	behaviours  map[string][]*Behaviour // by event name
	retired     map[int32]bool          // behaviours that are counted no more
	segments    map[int64]*evaluated
	byKey       map[string]*evaluated
	byBehaviour map[int32][]*evaluated
	byTrait     map[string][]*evaluated
	byConsent   map[string][]*evaluated
	vacuous     []*evaluated // those that somebody may be in of whom nothing is known, and what refers to them
}

// evaluated is a segment among the others.
type evaluated struct {
	*Segment
	depth      int          // of the references in its rule: it is evaluated after all that are less deep
	dependents []*evaluated // the segments that refer to it
}

func (e *evaluated) compare(f *evaluated) int {
	return cmp.Or(cmp.Compare(e.depth, f.depth), cmp.Compare(e.ID, f.ID))
}

// NewDefinitions returns the definitions of a workspace: the behaviours to fold and the segments to evaluate. References
// must not go round in circles; one that leads nowhere is to a segment without members.
func NewDefinitions(workspace int32, secret Secret, behaviours []*Behaviour, segments []*Segment) *Definitions {
	d := &Definitions{
		Workspace:   workspace,
		Secret:      secret,
		behaviours:  map[string][]*Behaviour{},
		segments:    map[int64]*evaluated{},
		byKey:       map[string]*evaluated{},
		byBehaviour: map[int32][]*evaluated{},
		byTrait:     map[string][]*evaluated{},
		byConsent:   map[string][]*evaluated{},
	}
	for _, b := range behaviours {
		d.behaviours[b.Event] = append(d.behaviours[b.Event], b)
	}
	for _, s := range segments {
		e := &evaluated{Segment: s}
		d.segments[s.ID], d.byKey[s.Key] = e, e
		for _, b := range s.Behaviours {
			d.byBehaviour[b] = append(d.byBehaviour[b], e)
		}
		for _, t := range s.Rule.Traits() {
			d.byTrait[t] = append(d.byTrait[t], e)
		}
		for _, c := range s.Rule.Consents() {
			d.byConsent[c] = append(d.byConsent[c], e)
		}
	}
	for _, s := range segments {
		for _, key := range s.Rule.Segments() {
			if referred := d.byKey[key]; referred != nil {
				referred.dependents = append(referred.dependents, d.segments[s.ID])
			}
		}
	}
	d.order(segments)
	return d
}

// order finds how deep every segment is, and who is in segments of which nothing is known.
func (d *Definitions) order(segments []*Segment) {
	var deepen func(e *evaluated, depth int)
	deepen = func(e *evaluated, depth int) {
		if depth <= e.depth && depth > 0 || depth > len(segments) {
			return
		}
		e.depth = depth
		for _, dependent := range e.dependents {
			deepen(dependent, depth+1)
		}
	}
	all := make([]*evaluated, 0, len(segments))
	for _, s := range segments {
		e := d.segments[s.ID]
		deepen(e, e.depth)
		all = append(all, e)
	}
	slices.SortFunc(all, (*evaluated).compare)
	// What refers to a segment hears of it when a membership in it changes. Of somebody new, whom the first thing known
	// keeps out of a vacuous segment, none does: so what refers to one is evaluated, too.
	in, vacuous := map[string]bool{}, map[string]bool{}
	for _, e := range all {
		holds, until := e.Rule.Eval(nobody{in}, time.Time{})
		in[e.Key] = holds
		if holds || !until.IsZero() || slices.ContainsFunc(e.Rule.Segments(), func(key string) bool { return vacuous[key] }) {
			vacuous[e.Key] = true
			d.vacuous = append(d.vacuous, e)
		}
	}
}

// evaluated returns the segment of an id, without a rule if there is none any more.
func (d *Definitions) evaluated(id int64) *evaluated {
	if e := d.segments[id]; e != nil {
		return e
	}
	return &evaluated{Segment: &Segment{ID: id}}
}
