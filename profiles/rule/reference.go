package rule

// MaxKey is how many bytes the key of a segment may have.
const MaxKey = 63

// segment is a condition on being a member of another segment. What it refers to, and that nothing refers to itself, is
// for the caller to see to: [Rule.Segments] has the keys.
type segment struct{ key string }

func (n segment) eval(s State, _ int64) (holds bool, until int64) { return s.Segment(n.key), never }

func (n segment) appendJSON(b []byte) []byte {
	return append(appendText(append(b, `{"segment":`...), n.key), '}')
}

func (n segment) describe(negated bool) string {
	verb := "who is in the segment "
	if negated {
		verb = "who is not in the segment "
	}
	return verb + sayText(n.key)
}

func (n segment) explain(_ State, _ int64, _ string, x *Explanation) {
	x.Kind, x.Segment = "segment", n.key
}

func (p *parser) reference(at string, v []byte) node {
	var n segment
	for _, m := range p.members(at, v, "segment") {
		s, ok := p.text(m.at, m.value)
		if ok && !isKey(s) {
			p.problem(m.at, "must be the key of a segment: at most %d of a-z, 0-9, _ and -, the first a letter or a digit", MaxKey)
		}
		n.key = s
	}
	return n
}

// isKey tells whether s may be the key of a segment.
func isKey(s string) bool {
	for i, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', i > 0 && (c == '_' || c == '-'):
		default:
			return false
		}
	}
	return 0 < len(s) && len(s) <= MaxKey
}
