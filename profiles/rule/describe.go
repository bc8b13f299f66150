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
	case *sequence:
		return true
	}
	return false
}

func (n not) describe(negated bool) string { return n.node.describe(!negated) }

func (t *trait) describe(negated bool) string { return "whose " + t.say(t.path, negated) }

func (e *event) describe(negated bool) string {
	what, when := e.say(), sayWindow(e.between, e.within)
	switch e.of.aggregate {
	case byCount:
		times, did := e.count.say(negated)
		if did {
			return "who did " + what + times + when
		}
		return "who did not do " + what + times + when
	case byFirst, byLast:
		return "whose " + e.is.say(e.of.say(what)+when, negated)
	case byDistinct:
		return "whose " + e.of.say(what) + when + " " + e.count.bounds().say(negated)
	}
	return "whose " + e.of.say(what) + when + " " + e.bounds.say(negated)
}

// say returns what is done.
func (b Behaviour) say() string {
	what := sayText(b.Event)
	for i, c := range b.Where {
		if i == 0 {
			what += " (where "
		} else {
			what += " and "
		}
		what += c.say(c.path, false)
	}
	if len(b.Where) > 0 {
		what += ")"
	}
	return what
}

// say returns the name of what is measured.
func (m measure) say(what string) string {
	words := aggregates[m.aggregate].of + " "
	switch {
	case m.property == "":
		return words + what
	case m.aggregate == byFirst || m.aggregate == byLast:
		return words + m.property + " in " + what
	}
	return words + m.property + " over " + what
}

// sayWindow returns when, as what follows the things that happened then.
func sayWindow(between *period, within int64) string {
	switch {
	case between != nil:
		return between.say()
	case within > 0:
		return " in the last " + sayDuration(within)
	}
	return ""
}

func (q *sequence) describe(negated bool) string {
	var b strings.Builder
	if negated {
		b.WriteString("of whom it is not true that they did ")
	} else {
		b.WriteString("who did ")
	}
	for i := range q.steps {
		if i > 0 {
			b.WriteString(", then ")
		}
		b.WriteString(q.steps[i].describe())
	}
	if q.then != nil {
		b.WriteString(", then not " + q.then.describe())
	}
	if q.within > 0 {
		b.WriteString(", all begun in the last " + sayDuration(q.within))
	}
	return b.String()
}

func (s *step) describe() string {
	if s.within == 0 {
		return s.say()
	}
	return s.say() + " within " + sayDuration(s.within)
}

func sayText(s string) string { return string(appendText(nil, s)) }

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

// say returns what is true of a subject, or the opposite.
func (c Condition) say(subject string, negated bool) string {
	words := operators[c.op.positive()]
	verb := words.yes
	if negated != c.op.negative() {
		verb = words.no
	}
	switch c.op.operand() {
	case operandNone:
		return subject + " " + verb
	case operandDuration:
		return subject + " " + verb + " " + sayDuration(c.ms)
	case operandDate:
		return subject + " " + verb + " " + sayDate(c.ms)
	case operandList:
		parts := make([]string, 0, saidValues+1)
		for i, v := range c.values {
			if i == saidValues {
				parts = append(parts, say(int64(len(c.values)-i), "other value"))
				break
			}
			parts = append(parts, string(v.appendJSON(nil)))
		}
		return subject + " " + verb + " " + strings.Join(parts, ", ")
	}
	return subject + " " + verb + " " + string(c.appendOperand(nil))
}
