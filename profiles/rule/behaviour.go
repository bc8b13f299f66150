package rule

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/profiles/timeline"
)

// Behaviour is something people do: an event whose properties meet every condition.
type Behaviour struct {
	Event string
	Where []Condition
	Keep  int // how many of the newest occurrences must be known; 0 if their number is enough
}

// Canonical returns b without Keep as JSON, such that two behaviours are the same if and only if the bytes are:
// conditions and lists are sorted, repetitions left out, and numbers and dates written in one way. These bytes are
// stored: their form never changes.
func (b Behaviour) Canonical() []byte {
	where := make([][]byte, len(b.Where))
	for i, c := range b.Where {
		where[i] = c.sorted().appendJSON(nil, "property")
	}
	slices.SortFunc(where, bytes.Compare)
	where = slices.CompactFunc(where, bytes.Equal)

	out := appendText([]byte(`{"event":`), b.Event)
	if len(where) > 0 {
		out = append(out, `,"where":[`...)
		out = append(out, bytes.Join(where, []byte(","))...)
		out = append(out, ']')
	}
	return append(out, '}')
}

// ParseBehaviour reads what [Behaviour.Canonical] writes. The error wraps an [*Error].
func ParseBehaviour(canonical []byte, keep int) (Behaviour, error) {
	var p parser
	b := document(&p, canonical, func(v []byte) (b Behaviour) {
		var named bool
		for _, m := range p.members("", v, "event", "where") {
			switch m.name {
			case "event":
				b.Event, named = p.name(m.at, m.value), true
			case "where":
				b.Where = p.where(m.at, m.value)
			}
		}
		if !named && v[0] == '{' {
			p.problem("", "must have event")
		}
		return b
	})
	if keep < 0 || keep > timeline.MaxKeep {
		p.problem("", "keep is %d, must be from 0 to %d", keep, timeline.MaxKeep)
	}
	if err := p.err(); err != nil {
		return Behaviour{}, fmt.Errorf("parse behaviour: %w", err)
	}
	b.Keep = keep
	return b, nil
}

// Empty returns a timeline that keeps what b needs, of nothing yet.
func (b Behaviour) Empty() timeline.Timeline { return timeline.Timeline{Keep: b.Keep} }

// Fold takes an occurrence at the time at, in Unix milliseconds, into t, which came from [Behaviour.Empty], if an event
// with these properties is one. It tells whether it was. That the event has b's name is for the caller to know.
func (b Behaviour) Fold(t *timeline.Timeline, at int64, properties jsontext.Value) bool {
	if !b.Matches(properties) {
		return false
	}
	t.Add(at)
	return true
}

// Matches tells whether the properties of an event meet every condition of b. That the event has b's name is for the
// caller to know. Properties are valid JSON, usually an object; anything else is the same as no properties.
func (b Behaviour) Matches(properties jsontext.Value) bool {
	for i := range b.Where {
		if !b.Where[i].holds(properties) {
			return false
		}
	}
	return true
}
