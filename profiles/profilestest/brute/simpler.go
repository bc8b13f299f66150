package brute

import (
	"maps"
	"slices"
)

// SimplerRules returns rules that are like a decoded one but for one thing that is left out, to find the smallest that
// still shows a disagreement. Not all of them are valid.
func SimplerRules(rule any) (list []any) {
	node, ok := rule.(object)
	if !ok {
		return nil
	}
	for _, group := range []string{"all", "any"} {
		rules, _ := node[group].([]any)
		list = append(list, rules...)
		for i, r := range rules {
			if len(rules) > 1 {
				list = append(list, object{group: slices.Delete(slices.Clone(rules), i, i+1)})
			}
			for _, simpler := range SimplerRules(r) {
				with := slices.Clone(rules)
				with[i] = simpler
				list = append(list, object{group: with})
			}
		}
	}
	if inner, ok := node["not"]; ok {
		list = append(list, inner)
		for _, simpler := range SimplerRules(inner) {
			list = append(list, object{"not": simpler})
		}
	}
	for _, part := range []string{"where", "within", "between", "then_not"} {
		if _, ok := node[part]; ok {
			list = append(list, without(node, part))
		}
	}
	for _, part := range []string{"where", "sequence"} {
		elements, _ := node[part].([]any)
		for i := range elements {
			if len(elements) > 1 {
				list = append(list, with(node, part, slices.Delete(slices.Clone(elements), i, i+1)))
			}
		}
	}
	if steps, ok := node["sequence"].([]any); ok {
		for i, step := range steps {
			for _, simpler := range SimplerRules(step) {
				fewer := slices.Clone(steps)
				fewer[i] = simpler
				list = append(list, with(node, "sequence", fewer))
			}
		}
	}
	for _, simpler := range SimplerRules(node["then_not"]) {
		list = append(list, with(node, "then_not", simpler))
	}
	return list
}

// SimplerPeople returns people like p but for one thing that is not known of them.
func SimplerPeople(p *Person) (list []*Person) {
	for i := range p.Events {
		q := *p
		q.Events = slices.Delete(slices.Clone(p.Events), i, i+1)
		list = append(list, &q)
	}
	for name := range p.Traits {
		q := *p
		q.Traits = without(p.Traits, name)
		list = append(list, &q)
	}
	for purpose := range p.Consent {
		q := *p
		q.Consent = maps.Clone(p.Consent)
		delete(q.Consent, purpose)
		list = append(list, &q)
	}
	for i, e := range p.Events {
		properties, _ := e.Properties.(object)
		for name := range properties {
			q := *p
			q.Events = slices.Clone(p.Events)
			q.Events[i].Properties = without(properties, name)
			list = append(list, &q)
		}
	}
	return list
}

func without(node object, name string) object {
	fewer := maps.Clone(node)
	delete(fewer, name)
	return fewer
}

func with(node object, name string, value any) object {
	other := maps.Clone(node)
	other[name] = value
	return other
}
