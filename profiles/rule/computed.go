package rule

import (
	"errors"
	"math"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/profiles/timeline"
)

// Computed is a value that is computed from what somebody did: an aggregate of a [Rule] without its bounds. It comes from
// [ParseComputed], never changes, and may be used by many at once.
//
//	{"event": "Order Completed", "sum": {"property": "revenue"}, "within": "30d"}
//
// It has exactly one of count, sum, avg, min, max, distinct, first and last. That is an object with the property, or an
// empty one: count has no property, and first and last may do without, when they are times.
type Computed struct {
	behaviour Behaviour
	of        measure
	within    int64 // milliseconds; 0: all time, or between
}

// ParseComputed reads the definition of a computed value. The error is an [*Error] that lists everything wrong with it.
func ParseComputed(b []byte) (*Computed, error) { return parseComputed(b, MaxSize) }

// ParseStoredComputed reads what ParseComputed has accepted, as [ParseStored] does.
func ParseStoredComputed(b []byte) (*Computed, error) { return parseComputed(b, math.MaxInt) }

func parseComputed(b []byte, size int) (*Computed, error) {
	var p parser
	c := document(&p, b, size, func(v []byte) *Computed { return p.computed(v) })
	if err := p.err(); err != nil {
		return nil, err
	}
	if n := len(c.appendJSON(nil)); n > MaxSize {
		p.problem("", "is %d bytes when printed, at most %d are allowed", n, MaxSize)
	}
	if err := p.err(); err != nil {
		return nil, err
	}
	return c, nil
}

func (p *parser) computed(v []byte) *Computed {
	if v[0] != '{' {
		p.problem("", "must be an object")
		return nil
	}
	c := &Computed{}
	var aggregated bool
	b, within := p.happening("", v, func(m member, a aggregate) {
		aggregated, c.of = true, measure{aggregate: a}
		if a == byCount {
			p.empty(m.at, m.value)
			return
		}
		for _, m := range p.members(m.at, m.value, "property") {
			c.of.property = p.path(m.at, m.value)
		}
		if a != byFirst && a != byLast {
			p.propertyMissing(m.at, m.value)
		}
	})
	if !has(v, "event") {
		p.problem("", "must have event")
	}
	if !aggregated {
		p.problem("", "must have one of %s", strings.Join(aggregateNames(), ", "))
	}
	c.within = within
	c.behaviour = c.of.behaviour(b, within, true)
	if c.of.aggregate == byDistinct {
		c.behaviour.Keep = timeline.MaxKeep
	}
	return c
}

// empty checks that v is an object without members.
func (p *parser) empty(at string, v []byte) {
	if v[0] != '{' || first(inside(v)) != nil {
		p.problem(at, "must be an empty object")
	}
}

// Behaviour returns what c is computed from: [Computed.Value] needs its timeline.
func (c *Computed) Behaviour() Behaviour { return c.behaviour }

// Value returns the value at the time now, and until when it stays the same if nothing else happens, zero for ever. t is the
// timeline of [Computed.Behaviour].
//
// It is a number, or of first and last the property's value or, without a property, a time of RFC 3339 in UTC. It is null
// if there is none, which only count, sum and distinct always have: 0. avg is rounded to 12 digits after the point, half to
// even; distinct counts to 1,000. Within a time, count, sum, avg, min, max and first are of the window at its resolution,
// distinct and last are exact: see the package comment.
func (c *Computed) Value(t timeline.Timeline, now time.Time) (v jsontext.Value, until time.Time) {
	v, end := c.of.value(t, c.within, now.UnixMilli())
	if v == nil {
		v = jsontext.Value("null")
	}
	return v, instant(end)
}

// MarshalJSON returns the canonical form of c, which [ParseComputed] reads as c again.
func (c *Computed) MarshalJSON() ([]byte, error) {
	if c.behaviour.Event == "" {
		return nil, errors.New("rule: was not parsed")
	}
	return c.appendJSON(nil), nil
}

func (c *Computed) appendJSON(b []byte) []byte {
	b = c.behaviour.appendEvent(append(b, '{'))
	b = append(append(append(b, `,"`...), c.of.aggregate.String()...), `":{`...)
	if c.of.property != "" {
		b = appendText(append(b, `"property":`...), c.of.property)
	}
	return append(appendWindow(append(b, '}'), c.behaviour.between, c.within), '}')
}

// Describe says in English what c is.
func (c *Computed) Describe() string {
	what := "The "
	if c.of.property == "" && c.of.aggregate != byCount {
		what = "The time of the "
	}
	return what + c.of.say(c.behaviour.say()) + sayWindow(c.behaviour.between, c.within) + "."
}
