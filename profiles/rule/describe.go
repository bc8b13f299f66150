package rule

import (
	"fmt"
	"strings"
)

// Describe returns r as an English sentence.
func (r *Rule) Describe() string {
	return "Everyone " + r.root.describe(false) + "."
}

// What is not true of all is untrue of any, and the other way round, so only single conditions are ever negated.
func (g group) describe(negated bool) string {
	word := " or "
	if g.all != negated {
		word = " and "
	}
	parts := make([]string, len(g.nodes))
	for i, n := range g.nodes {
		parts[i] = n.describe(negated)
		if len(g.nodes) > 1 && isGroup(n) {
			parts[i] = "(" + parts[i] + ")"
		}
	}
	return strings.Join(parts, word)
}

// isGroup tells whether what n says is several things.
func isGroup(n node) bool {
	switch n := n.(type) {
	case not:
		return isGroup(n.node)
	case group:
		return len(n.nodes) > 1 || isGroup(n.nodes[0])
	}
	return false
}

func (n not) describe(negated bool) string { return n.node.describe(!negated) }

func (t *trait) describe(negated bool) string { return "whose " + t.say(negated) }

func (e *event) describe(negated bool) string {
	var b strings.Builder
	times, did := e.count.say(negated)
	if did {
		fmt.Fprintf(&b, "who did %q", e.Event)
	} else {
		fmt.Fprintf(&b, "who did not do %q", e.Event)
	}
	for i, c := range e.Where {
		if i == 0 {
			b.WriteString(" (where ")
		} else {
			b.WriteString(" and ")
		}
		b.WriteString(c.say(false))
	}
	if len(e.Where) > 0 {
		b.WriteString(")")
	}
	b.WriteString(times)
	if e.within > 0 {
		b.WriteString(" in the last " + sayDuration(e.within))
	}
	return b.String()
}

// say returns how often, unless that goes without saying, and whether it was done at all.
func (c count) say(negated bool) (times string, did bool) {
	switch {
	case c == count{1, unbounded}:
		return "", !negated
	case c == count{}:
		return "", negated
	case c.max == unbounded && negated:
		return " fewer than " + say(c.min, "time"), true
	case c.max == unbounded:
		return " at least " + say(c.min, "time"), true
	case c.min == c.max && negated:
		return " more or less often than " + say(c.min, "time"), true
	case c.min == c.max:
		return " exactly " + say(c.min, "time"), true
	case c.min == 0 && negated:
		return " more than " + say(c.max, "time"), true
	case c.min == 0:
		return " at most " + say(c.max, "time"), true
	case negated:
		return fmt.Sprintf(" fewer than %d or more than %s", c.min, say(c.max, "time")), true
	}
	return fmt.Sprintf(" %d to %s", c.min, say(c.max, "time")), true
}

// Of a long list, only so many values are said.
const saidValues = 5

// say returns what is true of the subject, or the opposite.
func (c Condition) say(negated bool) string {
	words := operators[c.op.positive()]
	verb := words.yes
	if negated != c.op.negative() {
		verb = words.no
	}
	switch c.op.operand() {
	case operandNone:
		return c.path + " " + verb
	case operandDuration:
		return c.path + " " + verb + " " + sayDuration(c.ms)
	case operandDate:
		return c.path + " " + verb + " " + strings.Trim(string(appendDate(nil, c.ms)), `"`)
	case operandList:
		parts := make([]string, 0, saidValues+1)
		for i, v := range c.values {
			if i == saidValues {
				parts = append(parts, say(int64(len(c.values)-i), "other value"))
				break
			}
			parts = append(parts, string(v.appendJSON(nil)))
		}
		return c.path + " " + verb + " " + strings.Join(parts, ", ")
	}
	return c.path + " " + verb + " " + string(c.appendOperand(nil))
}
