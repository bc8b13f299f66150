package profiles

import "github.com/mubatch/mubatch/profiles/rule"

// Behaviour is a behaviour under its id.
type Behaviour struct {
	ID int32
	rule.Behaviour
}

// Segment is a segment's rule as a lane evaluates it. Behaviours are the ids of the rule's behaviours, in its order.
type Segment struct {
	ID         int64
	Version    int
	Rule       *rule.Rule
	Behaviours []int32
}

// Definitions is what a lane knows of one workspace between two µbatches: what to fold and what to evaluate.
type Definitions struct {
	Workspace int32
	Secret    Secret

	behaviours  map[string][]*Behaviour // by event name
	segments    map[int64]*Segment
	byBehaviour map[int32][]*Segment
	byTrait     map[string][]*Segment
}

// NewDefinitions returns the definitions of a workspace: the behaviours to fold and the segments to evaluate.
func NewDefinitions(workspace int32, secret Secret, behaviours []*Behaviour, segments []*Segment) *Definitions {
	d := &Definitions{
		Workspace:   workspace,
		Secret:      secret,
		behaviours:  map[string][]*Behaviour{},
		segments:    map[int64]*Segment{},
		byBehaviour: map[int32][]*Segment{},
		byTrait:     map[string][]*Segment{},
	}
	for _, b := range behaviours {
		d.behaviours[b.Event] = append(d.behaviours[b.Event], b)
	}
	for _, s := range segments {
		d.segments[s.ID] = s
		for _, b := range s.Behaviours {
			d.byBehaviour[b] = append(d.byBehaviour[b], s)
		}
		for _, t := range s.Rule.Traits() {
			d.byTrait[t] = append(d.byTrait[t], s)
		}
	}
	return d
}
