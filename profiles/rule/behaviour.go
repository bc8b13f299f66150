package rule

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/profiles/timeline"
)

// Behaviour is something people do, and what of it is to be kept: an event whose properties meet every condition and that
// is dated within a period, if there is one. Of those either the times are kept, or what was measured of a property.
type Behaviour struct {
	Event string
	Where []Condition
	Keep  int // how many of the newest times or different values must be known; 0 if their number is enough

	between    *period
	tally      aggregate // what is kept: byCount stands for times, or with a resolution for numbers of occurrences; never byAvg
	property   string    // what is measured; empty for when it was
	resolution int64     // of the buckets, in milliseconds; 0: one for all time
	span       int64     // how far back buckets are needed, in milliseconds
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
	if b.between != nil {
		out = b.between.appendJSON(append(out, `,"between":`...))
	}
	if b.tally != byCount || b.resolution > 0 {
		out = append(append(append(out, `,"tally":"`...), b.tally.String()...), '"')
	}
	if b.property != "" {
		out = appendText(append(out, `,"property":`...), b.property)
	}
	if b.resolution > 0 {
		out = appendDuration(append(out, `,"resolution":`...), b.resolution)
		out = appendDuration(append(out, `,"span":`...), b.span)
	}
	return append(out, '}')
}

// ParseBehaviour reads what [Behaviour.Canonical] writes. The error wraps an [*Error].
func ParseBehaviour(canonical []byte, keep int) (Behaviour, error) {
	var p parser
	b := document(&p, canonical, 2*MaxSize, func(v []byte) Behaviour { return p.behaviour(v) })
	if keep < 0 || keep > timeline.MaxKeep {
		p.problem("", "keep is %d, must be from 0 to %d", keep, timeline.MaxKeep)
	}
	if err := p.err(); err != nil {
		return Behaviour{}, fmt.Errorf("parse behaviour: %w", err)
	}
	b.Keep = keep
	return b, nil
}

func (p *parser) behaviour(v []byte) (b Behaviour) {
	var named bool
	for _, m := range p.members("", v, "event", "where", "between", "tally", "property", "resolution", "span") {
		switch m.name {
		case "event":
			b.Event, named = p.name(m.at, m.value), true
		case "where":
			b.Where = p.where(m.at, m.value)
		case "between":
			b.between = p.period(m.at, m.value)
		case "tally":
			b.tally = p.tally(m.at, m.value)
		case "property":
			b.property = p.path(m.at, m.value)
		case "resolution":
			b.resolution = p.duration(m.at, m.value)
		case "span":
			b.span = p.duration(m.at, m.value)
		}
	}
	switch {
	case v[0] != '{':
	case !named:
		p.problem("", "must have event")
	case !b.isKept():
		p.problem("", "has members that do not go together")
	}
	return b
}

func (p *parser) tally(at string, v []byte) aggregate {
	s, _ := p.text(at, v)
	a, ok := parseAggregate(s)
	if !ok || a == byAvg {
		p.problem(at, "is no tally")
		return byCount
	}
	return a
}

// isKept tells whether there is a timeline that keeps what b says.
func (b Behaviour) isKept() bool {
	coarse := b.resolution > 0
	switch {
	case coarse != (b.span > 0), b.span > windowBuckets*b.resolution:
		return false
	}
	switch b.tally {
	case byCount:
		return b.property == ""
	case byFirst:
		return b.property != "" || coarse
	case byLast, byDistinct:
		return b.property != "" && !coarse
	}
	return b.property != ""
}

// Empty returns a timeline that keeps what b needs, of nothing yet.
func (b Behaviour) Empty() timeline.Timeline {
	t := timeline.Timeline{Kind: aggregates[b.tally].kind}
	switch {
	case b.resolution > 0 && b.tally == byCount:
		t.Kind = timeline.Sum
		fallthrough
	case b.resolution > 0:
		t.Keep, t.Width = slots(b.span, b.resolution), b.resolution
	case t.Kind == timeline.Times || t.Kind == timeline.Distinct:
		t.Keep = b.Keep
	}
	return t
}

// Fold takes an occurrence at the time at, in Unix milliseconds, into t, which came from [Behaviour.Empty], if an event
// with these properties is one. It tells whether it was: an event that has no value of the property to be measured is none.
// That the event has b's name is for the caller to know. Properties are as for [Behaviour.Matches].
func (b Behaviour) Fold(t *timeline.Timeline, at int64, properties jsontext.Value) bool {
	if b.between != nil && !b.between.has(at) || !b.Matches(properties) {
		return false
	}
	if b.property == "" {
		t.Add(at)
		return true
	}
	var measured bool
	look(properties, b.property, func(v []byte) {
		switch b.tally {
		case byFirst, byLast, byDistinct:
			written, short := canonical(v)
			if short || b.tally == byDistinct {
				t.AddValue(at, written)
				measured = true
			}
		default:
			if n, ok := amountOf(v); ok {
				t.AddNumber(at, n)
				measured = true
			}
		}
	})
	return measured
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
