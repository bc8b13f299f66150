package rule

import "errors"

// MarshalJSON returns the canonical form of r, which [Parse] reads as r again.
func (r *Rule) MarshalJSON() ([]byte, error) {
	if r.root == nil {
		return nil, errors.New("rule: was not parsed")
	}
	return r.root.appendJSON(nil), nil
}

func (g group) appendJSON(b []byte) []byte {
	if g.all {
		b = append(b, `{"all":[`...)
	} else {
		b = append(b, `{"any":[`...)
	}
	for i, n := range g.nodes {
		if i > 0 {
			b = append(b, ',')
		}
		b = n.appendJSON(b)
	}
	return append(b, ']', '}')
}

func (n not) appendJSON(b []byte) []byte {
	b = n.node.appendJSON(append(b, `{"not":`...))
	return append(b, '}')
}

func (e *event) appendJSON(b []byte) []byte {
	b = appendText(append(b, `{"event":`...), e.Event)
	if len(e.Where) > 0 {
		b = append(b, `,"where":[`...)
		for i, c := range e.Where {
			if i > 0 {
				b = append(b, ',')
			}
			b = c.appendJSON(b, "property")
		}
		b = append(b, ']')
	}
	b = e.count.appendJSON(append(b, `,"count":`...))
	if e.within > 0 {
		b = appendDuration(append(b, `,"within":`...), e.within)
	}
	return append(b, '}')
}
