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
	b = e.appendEvent(append(b, '{'))
	b = append(append(append(b, `,"`...), e.of.aggregate.String()...), `":`...)
	switch e.of.aggregate {
	case byCount:
		b = append(e.count.appendJSON(append(b, '{')), '}')
	case byDistinct:
		b = append(e.count.appendJSON(e.of.appendProperty(b)), '}')
	case byFirst, byLast:
		b = e.is.appendJSON(b, "property")
	default:
		b = append(e.bounds.appendJSON(e.of.appendProperty(b)), '}')
	}
	return append(appendWindow(b, e.between, e.within), '}')
}

// appendProperty appends the beginning of an object that goes on.
func (m measure) appendProperty(b []byte) []byte {
	return append(appendText(append(b, `{"property":`...), m.property), ',')
}

// appendEvent appends the members that say which occurrences are meant.
func (b Behaviour) appendEvent(out []byte) []byte {
	out = appendText(append(out, `"event":`...), b.Event)
	if len(b.Where) == 0 {
		return out
	}
	out = append(out, `,"where":[`...)
	for i, c := range b.Where {
		if i > 0 {
			out = append(out, ',')
		}
		out = c.appendJSON(out, "property")
	}
	return append(out, ']')
}

// appendWindow appends the member that says when, if there is to be one.
func appendWindow(b []byte, between *period, within int64) []byte {
	switch {
	case between != nil:
		return between.appendJSON(append(b, `,"between":`...))
	case within > 0:
		return appendDuration(append(b, `,"within":`...), within)
	}
	return b
}

func (q *sequence) appendJSON(b []byte) []byte {
	b = append(b, `{"sequence":[`...)
	for i := range q.steps {
		if i > 0 {
			b = append(b, ',')
		}
		b = q.steps[i].appendJSON(b)
	}
	b = append(b, ']')
	if q.then != nil {
		b = q.then.appendJSON(append(b, `,"then_not":`...))
	}
	return append(appendWindow(b, nil, q.within), '}')
}

func (s *step) appendJSON(b []byte) []byte {
	return append(appendWindow(s.appendEvent(append(b, '{')), nil, s.within), '}')
}
