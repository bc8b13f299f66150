package rule

import "strings"

// MaxPurpose is how many bytes the name of a purpose of consent may have.
const MaxPurpose = 100

// decision is what somebody said of a purpose, if anything.
type decision uint8

const (
	undecided decision = iota
	denied
	granted
)

// decisions are what they are called, by their number.
var decisions = []string{undecided: "unknown", denied: "denied", granted: "granted"}

// consent is a condition on the latest decision on a purpose.
type consent struct {
	purpose string
	is      decision
}

func (c consent) decided(s State) decision {
	switch yes, known := s.Consent(c.purpose); {
	case !known:
		return undecided
	case yes:
		return granted
	}
	return denied
}

func (c consent) eval(s State, _ int64) (holds bool, until int64) { return c.decided(s) == c.is, never }

func (c consent) appendJSON(b []byte) []byte {
	b = appendText(append(b, `{"consent":`...), c.purpose)
	b = append(append(b, `,"is":"`...), decisions[c.is]...)
	return append(b, `"}`...)
}

func (c consent) describe(negated bool) string {
	verb := " is "
	if negated {
		verb = " is not "
	}
	return "whose consent to " + sayText(c.purpose) + verb + decisions[c.is]
}

func (c consent) explain(s State, _ int64, _ string, x *Explanation) {
	x.Kind = "consent"
	if d := c.decided(s); d != undecided {
		x.Observed = appendText(nil, decisions[d])
	}
}

func (p *parser) consent(at string, v []byte) node {
	var c consent
	var has bool
	for _, m := range p.members(at, v, "consent", "is") {
		switch m.name {
		case "consent":
			if c.purpose = p.name(m.at, m.value); len(c.purpose) > MaxPurpose {
				p.problem(m.at, "is %d bytes long, at most %d are allowed", len(c.purpose), MaxPurpose)
			}
		case "is":
			c.is, has = p.decision(m.at, m.value), true
		}
	}
	if !has {
		p.problem(at, "must have is")
	}
	return c
}

func (p *parser) decision(at string, v []byte) decision {
	s, ok := p.text(at, v)
	if !ok {
		return undecided
	}
	for i, name := range decisions {
		if s == name {
			return decision(i)
		}
	}
	p.problem(at, "must be one of %s", strings.Join(decisions, ", "))
	return undecided
}
