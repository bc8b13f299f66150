package rule

import (
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/profiles/timeline"
)

// event is a condition on what comes of a behaviour's occurrences in a window.
type event struct {
	behaviour int // index in Rule.behaviours
	Behaviour
	of     measure
	within int64 // milliseconds; 0: all time, or between

	count  count     // by count and distinct
	bounds bounds    // by sum, avg, min and max
	is     Condition // by first and last: on the value or, without a property, on the time
}

func (e *event) eval(s State, now int64) (holds bool, until int64) {
	t := s.Timeline(e.behaviour)
	switch e.of.aggregate {
	case byCount:
		if e.within == 0 {
			return e.count.holds(t.Count), never
		}
		return e.count.window(t.Times, e.within, now)
	case byDistinct:
		if e.within == 0 {
			return e.count.holds(int64(len(t.Times))), never
		}
		return e.count.window(t.Times, e.within, now)
	case byFirst, byLast:
		return e.evalExtremes(t, now)
	}
	holds, until = e.of.aggregate == bySum && e.bounds.hold(timeline.Decimal{}, 1), never
	slide(t, e.within, now, func(b timeline.Bucket, leaves int64) {
		if h := e.bounds.hold(e.of.amount(b)); h != holds {
			holds, until = h, leaves
		}
	})
	return holds, until
}

// evalExtremes goes through what is first, or last, as time passes, until the answer is another.
func (e *event) evalExtremes(t timeline.Timeline, now int64) (holds bool, until int64) {
	at := now
	for i, b := range e.of.extremes(t, e.within, now) {
		h, until := e.holdsOf(b, at)
		if i == 0 {
			holds = h
		} else if h != holds {
			return holds, at
		}
		end := leaves(t, b, e.within)
		if until < end {
			return holds, until
		}
		at = end
	}
	if !holds {
		return false, never
	}
	return true, at // nothing is left then
}

// holdsOf tells whether the condition is true of a first or last occurrence.
func (e *event) holdsOf(b timeline.Bucket, now int64) (holds bool, until int64) {
	if e.of.property == "" {
		return e.is.atInstant(b.At, now)
	}
	return e.is.at([]byte(b.Text), now)
}

func (e *event) explain(s State, now int64, _ string, x *Explanation) {
	x.Kind = "event"
	x.Behaviours = []int{e.behaviour}
	switch {
	case e.within > 0:
		x.From = time.UnixMilli(e.of.from(e.within, e.resolution, now)).UTC()
	case e.between != nil && e.between.from != dawn:
		x.From = time.UnixMilli(e.between.from).UTC()
	}
	t := s.Timeline(e.behaviour)
	switch e.of.aggregate {
	case byCount, byDistinct:
		x.Observed = e.counted(t, now)
	default:
		x.Observed, _ = e.of.value(t, e.within, now)
	}
}

// counted returns how often or how many there were. If more may have been than is known, that is a lower bound.
func (e *event) counted(t timeline.Timeline, now int64) jsontext.Value {
	n, all := t.Count, true
	if e.of.aggregate == byDistinct || e.within > 0 {
		known := int64(len(t.Times))
		if n = known; e.within > 0 {
			n = after(t.Times, earlier(now, e.within))
		}
		all = n < known || known < int64(t.Keep) || known == t.Count
	}
	written := appendDecimal(nil, timeline.NewInteger(n))
	if all {
		return written
	}
	return append(append([]byte(`{"at_least":`), written...), '}')
}

// event reads a condition on what somebody did.
func (p *parser) event(at string, v []byte) node {
	e := &event{count: count{1, unbounded}}
	aggregateAt := at
	b, within := p.happening(at, v, func(m member, a aggregate) {
		e.of, aggregateAt = measure{aggregate: a}, m.at
		switch a {
		case byCount:
			e.count = p.count(m.at, p.aggregated(m, nil))
		case byDistinct:
			e.count = p.count(m.at, p.aggregated(m, &e.of))
		case byFirst, byLast:
			e.is = p.extreme(m.at, m.value)
			e.of.property = e.is.path
		default:
			e.bounds = p.bounds(m.at, p.aggregated(m, &e.of))
		}
	})
	e.within = within
	e.Behaviour = e.of.behaviour(b, within, false)
	switch {
	case e.of.aggregate == byDistinct:
		if e.count.keep() > timeline.MaxKeep || e.count.min == timeline.MaxKeep {
			p.problem(aggregateAt, "needs more different values than are kept: count to at most %d", timeline.MaxKeep-1)
			return e
		}
		e.Keep = int(e.count.keep())
	case e.of.aggregate == byCount && within > 0:
		keep := e.count.keep()
		if keep > timeline.MaxKeep {
			p.problem(aggregateAt, "needs the newest %d occurrences to tell, and at most %d are kept: count less, or leave out within", keep, timeline.MaxKeep)
			return e
		}
		e.Keep = int(keep)
	}
	return e
}

// happening reads which occurrences are meant, and when. What is to come of them, of which there may be one member, is read
// by aggregated.
func (p *parser) happening(at string, v []byte, aggregated func(m member, a aggregate)) (b Behaviour, within int64) {
	known := slices.Concat([]string{"event", "where"}, aggregateNames(), []string{"within", "between"})
	var by, when []string
	for _, m := range p.members(at, v, known...) {
		switch m.name {
		case "event":
			b.Event = p.name(m.at, m.value)
		case "where":
			b.Where = p.where(m.at, m.value)
		case "within":
			within, when = p.duration(m.at, m.value), append(when, m.name)
		case "between":
			b.between, when = p.period(m.at, m.value), append(when, m.name)
		default:
			a, _ := parseAggregate(m.name)
			by = append(by, m.name)
			aggregated(m, a)
		}
	}
	for _, of := range [][]string{by, when} {
		if len(of) > 1 {
			p.problem(at, "has %s, of which there may be only one", strings.Join(of, " and "))
		}
	}
	return b, within
}

// aggregated reads the property of which something is measured, unless of is nil, and returns the other members, which are
// bounds.
func (p *parser) aggregated(m member, of *measure) (rest []member) {
	before := len(p.problems)
	known := boundNames
	if of != nil {
		known = append([]string{"property"}, boundNames...)
	}
	for _, m := range p.members(m.at, m.value, known...) {
		if m.name == "property" {
			of.property = p.path(m.at, m.value)
		} else {
			rest = append(rest, m)
		}
	}
	if of != nil {
		p.propertyMissing(m.at, m.value)
	}
	if len(rest) == 0 && len(p.problems) == before {
		p.problem(m.at, "must have one of %s", strings.Join(boundNames, ", "))
	}
	return rest
}

// propertyMissing notes that an object has no property, if that is so.
func (p *parser) propertyMissing(at string, v []byte) {
	if v[0] == '{' && !has(v, "property") {
		p.problem(at, "must have property")
	}
}

// extreme reads a condition on the first or last value of a property or, without one, on the first or last time.
func (p *parser) extreme(at string, v []byte) (c Condition) {
	if v[0] == '{' && has(v, "property") {
		c, _ = p.condition(at, v, "property", true)
		return c
	}
	return p.moment(at, v)
}

// has tells whether the object v has a member of a name.
func has(v []byte, name string) bool {
	for s := inside(v); ; {
		n, value := s.next(), s.next()
		if value == nil {
			return false
		}
		if string(text(n)) == name {
			return true
		}
	}
}
