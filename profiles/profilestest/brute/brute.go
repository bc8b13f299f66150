// Package brute says who fits a rule by looking through everything that a person ever did, anew for every question.
//
// It is what the engine is held to, so it shares nothing with it: no code, no data, no way of doing things. It keeps
// nothing, remembers nothing and is in no hurry; each function is one sentence of the language's description. Rules are
// taken as JSON that somebody else has checked: what they must not hold makes it panic.
package brute

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// Person is everything that is known of somebody.
type Person struct {
	Traits  map[string]any  // as Decode returns them; none is null
	Consent map[string]bool // the latest decision by purpose
	Events  []Occurrence    // in any order
}

// Occurrence is one distinct event.
type Occurrence struct {
	Name       string
	Properties any   // as Decode returns them
	At         int64 // unix milliseconds
}

// Decode reads JSON: objects as map[string]any, arrays as []any, numbers as json.Number.
func Decode(text []byte) any {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		panic(fmt.Sprintf("%s: %v", text, err))
	}
	return v
}

// Holds tells whether a decoded rule holds for p at the moment now, in unix milliseconds. segments are the decoded rules
// that it may refer to, by key.
func Holds(rule any, p *Person, segments map[string]any, now int64) bool {
	q := question{p, segments, now}
	return q.holds(rule.(map[string]any))
}

// question is whom we ask about, and when.
type question struct {
	*Person
	segments map[string]any
	now      int64
}

func (q question) holds(rule map[string]any) bool {
	switch {
	case has(rule, "all"):
		return q.all(rule["all"].([]any))
	case has(rule, "any"):
		return q.any(rule["any"].([]any))
	case has(rule, "not"):
		return !q.holds(rule["not"].(map[string]any))
	case has(rule, "trait"):
		return q.trait(rule)
	case has(rule, "consent"):
		return q.consent(rule)
	case has(rule, "segment"):
		return q.holds(q.segments[rule["segment"].(string)].(map[string]any))
	case has(rule, "sequence"):
		return q.sequence(rule)
	case has(rule, "event"):
		return q.event(rule)
	}
	panic(fmt.Sprintf("%v is no rule", rule))
}

func has(object map[string]any, name string) bool {
	_, ok := object[name]
	return ok
}

func (q question) all(rules []any) bool {
	for _, r := range rules {
		if !q.holds(r.(map[string]any)) {
			return false
		}
	}
	return true
}

func (q question) any(rules []any) bool {
	for _, r := range rules {
		if q.holds(r.(map[string]any)) {
			return true
		}
	}
	return false
}

func (q question) trait(rule map[string]any) bool {
	traits := map[string]any{}
	for name, value := range q.Traits {
		traits[name] = value
	}
	return meets(find(traits, rule["trait"].(string)), rule["op"].(string), rule["value"], q.now)
}

func (q question) consent(rule map[string]any) bool {
	granted, known := q.Consent[rule["consent"].(string)]
	switch rule["is"] {
	case "granted":
		return known && granted
	case "denied":
		return known && !granted
	case "unknown":
		return !known
	}
	panic(fmt.Sprintf("%v is no consent", rule["is"]))
}

// occurrences returns every occurrence of what node describes: an event of that name whose properties meet every
// condition in where.
func (q question) occurrences(node map[string]any) (found []Occurrence) {
	for _, e := range q.Events {
		if e.Name == node["event"] && q.where(node, e) {
			found = append(found, e)
		}
	}
	return found
}

func (q question) where(node map[string]any, e Occurrence) bool {
	conditions, _ := node["where"].([]any)
	for _, c := range conditions {
		c := c.(map[string]any)
		if !meets(find(e.Properties, c["property"].(string)), c["op"].(string), c["value"], q.now) {
			return false
		}
	}
	return true
}
