package rule

import (
	"github.com/go-json-experiment/json/jsontext"
)

// Where are conditions on the properties of an event, all of which must be true, as the where of an event condition. The
// zero Where is true of every event.
type Where struct {
	conditions []Condition
}

// ParseWhere reads an array of conditions. The error is an [*Error].
func ParseWhere(b []byte) (Where, error) {
	var p parser
	conditions := document(&p, b, MaxSize, func(v []byte) []Condition { return p.where("", v) })
	if err := p.err(); err != nil {
		return Where{}, err
	}
	return Where{conditions}, nil
}

// Matches tells whether all conditions are true of an event's properties.
func (w Where) Matches(properties jsontext.Value) bool {
	return Behaviour{Where: w.conditions}.Matches(properties)
}

// String returns the conditions as JSON, in their canonical form.
func (w Where) String() string {
	out := []byte{'['}
	for i, c := range w.conditions {
		if i > 0 {
			out = append(out, ',')
		}
		out = c.appendJSON(out, "property")
	}
	return string(append(out, ']'))
}
