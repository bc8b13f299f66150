package rule

import (
	"strings"

	"github.com/mubatch/mubatch/profiles/timeline"
)

// bounds is a range of numbers, of which at least one end is set.
type bounds struct{ lower, upper *bound }

// bound is an end of a range.
type bound struct {
	scalar
	value  timeline.Decimal
	strict bool // the bound itself is outside
}

// hold tells whether total / by, of which by is positive, lies within b.
func (b bounds) hold(total timeline.Decimal, by int64) bool {
	if b.lower != nil {
		if order := total.Compare(b.lower.value.Multiply(by)); order < 0 || order == 0 && b.lower.strict {
			return false
		}
	}
	if b.upper != nil {
		if order := total.Compare(b.upper.value.Multiply(by)); order > 0 || order == 0 && b.upper.strict {
			return false
		}
	}
	return true
}

// isOne tells whether only one number lies within b.
func (b bounds) isOne() bool {
	return b.lower != nil && b.upper != nil && b.lower.value.Equal(b.upper.value)
}

func (b bounds) appendJSON(out []byte) []byte {
	if b.isOne() {
		return b.lower.appendJSON(append(out, `"eq":`...))
	}
	if b.lower != nil {
		name := `"gte":`
		if b.lower.strict {
			name = `"gt":`
		}
		out = b.lower.appendJSON(append(out, name...))
	}
	if b.lower != nil && b.upper != nil {
		out = append(out, ',')
	}
	if b.upper != nil {
		name := `"lte":`
		if b.upper.strict {
			name = `"lt":`
		}
		out = b.upper.appendJSON(append(out, name...))
	}
	return out
}

// say returns what is true of a number within b, or of one that is not.
func (b bounds) say(negated bool) string {
	var parts []string
	switch {
	case b.isOne():
		parts = append(parts, b.lower.text)
	default:
		if b.lower != nil {
			parts = append(parts, map[bool]string{false: "at least ", true: "more than "}[b.lower.strict]+b.lower.text)
		}
		if b.upper != nil {
			parts = append(parts, map[bool]string{false: "at most ", true: "less than "}[b.upper.strict]+b.upper.text)
		}
	}
	verb := "is "
	switch {
	case negated && len(parts) == 2:
		verb = "is not both "
	case negated:
		verb = "is not "
	}
	return verb + strings.Join(parts, " and ")
}

// boundNames are the members that say bounds: at most one from below, at most one from above, or eq alone.
var boundNames = []string{"gte", "gt", "lte", "lt", "eq"}

// ends checks which bounds members name.
func (p *parser) ends(at string, members []member) bool {
	var lower, upper, eq int
	for _, m := range members {
		switch m.name {
		case "gte", "gt":
			lower++
		case "lte", "lt":
			upper++
		case "eq":
			eq++
		}
	}
	switch {
	case lower > 1, upper > 1, eq > 0 && len(members) > 1:
		p.problem(at, "may have one of gte and gt with one of lte and lt, or eq alone")
	default:
		return true
	}
	return false
}

// bounds reads bounds from the members that name them.
func (p *parser) bounds(at string, members []member) (b bounds) {
	before := len(p.problems)
	for _, m := range members {
		if k := m.value[0]; k != '-' && (k < '0' || k > '9') {
			p.problem(m.at, "must be a number")
			continue
		}
		end := &bound{scalar: p.scalar(m.at, m.value), strict: m.name == "gt" || m.name == "lt"}
		end.value = end.number.decimal()
		switch m.name {
		case "gte", "gt":
			b.lower = end
		case "lte", "lt":
			b.upper = end
		case "eq":
			b.lower, b.upper = end, end
		}
	}
	if p.ends(at, members) && len(p.problems) == before && b.lower != nil && b.upper != nil {
		if order := b.lower.value.Compare(b.upper.value); order > 0 || order == 0 && (b.lower.strict || b.upper.strict) {
			p.problem(at, "can never be true")
		}
	}
	return b
}
