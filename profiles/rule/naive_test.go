package rule_test

import (
	"bytes"
	"encoding/json"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The naive evaluator knows the whole history of a profile and looks at all of it each time. It shares nothing with the
// package but the language.
type naive struct {
	traits map[string]any
	events []naiveEvent
	now    int64
}

type naiveEvent struct {
	name       string
	properties string // JSON
	at         int64
}

// fataler is a *testing.T or a *rapid.T.
type fataler interface {
	Fatalf(format string, args ...any)
}

// decode reads JSON with its numbers as they are written.
func decode(t fataler, s string) any {
	d := json.NewDecoder(bytes.NewBufferString(s))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("decode %s: %v", s, err)
	}
	return v
}

func (n naive) holds(t fataler, rule map[string]any) bool {
	switch {
	case rule["all"] != nil:
		return !slices.ContainsFunc(rule["all"].([]any), func(r any) bool { return !n.holds(t, r.(map[string]any)) })
	case rule["any"] != nil:
		return slices.ContainsFunc(rule["any"].([]any), func(r any) bool { return n.holds(t, r.(map[string]any)) })
	case rule["not"] != nil:
		return !n.holds(t, rule["not"].(map[string]any))
	case rule["trait"] != nil:
		return n.condition(rule["trait"].(string), rule, n.traits)
	}
	count := 0
	for _, e := range n.events {
		within, windowed := rule["within"].(string)
		if e.name == rule["event"] && (!windowed || e.at > n.now-naiveDuration(within)) && n.where(t, rule, e.properties) {
			count++
		}
	}
	bounds, ok := rule["count"].(map[string]any)
	if !ok {
		return count >= 1
	}
	for op, bound := range bounds {
		b, _ := strconv.Atoi(string(bound.(json.Number)))
		if ok := map[string]bool{"gte": count >= b, "gt": count > b, "lte": count <= b, "lt": count < b, "eq": count == b}[op]; !ok {
			return false
		}
	}
	return true
}

func (n naive) where(t fataler, rule map[string]any, properties string) bool {
	where, _ := rule["where"].([]any)
	return !slices.ContainsFunc(where, func(c any) bool {
		m := c.(map[string]any)
		return !n.condition(m["property"].(string), m, decode(t, properties))
	})
}

func (n naive) condition(path string, c map[string]any, in any) bool {
	op, value := c["op"].(string), c["value"]
	if opposite, ok := map[string]string{"neq": "eq", "not_in": "in", "not_contains": "contains", "not_exists": "exists"}[op]; ok {
		return !n.condition(path, map[string]any{"op": opposite, "value": value}, in)
	}
	for _, found := range lookUp(in, strings.Split(path, ".")) {
		if found == nil {
			continue
		}
		if op == "exists" {
			return true
		}
		elements, isArray := found.([]any)
		if !isArray {
			elements = []any{found}
		}
		for _, e := range elements {
			if n.compare(op, e, value, isArray) {
				return true
			}
		}
	}
	return false
}

func lookUp(in any, steps []string) (found []any) {
	if len(steps) == 0 {
		return []any{in}
	}
	switch in := in.(type) {
	case map[string]any:
		for i := range steps {
			if v, ok := in[strings.Join(steps[:i+1], ".")]; ok {
				found = append(found, lookUp(v, steps[i+1:])...)
			}
		}
	case []any:
		for i, e := range in {
			if strconv.Itoa(i) == steps[0] {
				found = append(found, lookUp(e, steps[1:])...)
			}
			if _, ok := e.(map[string]any); ok {
				found = append(found, lookUp(e, steps)...)
			}
		}
	}
	return found
}

func (n naive) compare(op string, v, with any, inArray bool) bool {
	s, isText := v.(string)
	w, withText := with.(string)
	texts := isText && withText
	switch op {
	case "eq":
		return same(v, with)
	case "in":
		return slices.ContainsFunc(with.([]any), func(w any) bool { return same(v, w) })
	case "gt", "gte", "lt", "lte":
		a, ok := v.(json.Number)
		if !ok {
			return false
		}
		order := rat(a).Cmp(rat(with.(json.Number)))
		return map[string]bool{"gt": order > 0, "gte": order >= 0, "lt": order < 0, "lte": order <= 0}[op]
	case "contains":
		if inArray {
			return same(v, with)
		}
		return texts && strings.Contains(s, w)
	case "starts_with":
		return texts && strings.HasPrefix(s, w)
	case "ends_with":
		return texts && strings.HasSuffix(s, w)
	case "matches":
		return texts && regexp.MustCompile(w).MatchString(s)
	}
	at, ok := naiveDate(v)
	if !ok {
		return false
	}
	switch op {
	case "before":
		limit, _ := naiveDate(with)
		return at < limit
	case "after":
		limit, _ := naiveDate(with)
		return at > limit
	case "within_last":
		return n.now-naiveDuration(w) < at && at <= n.now
	case "within_next":
		return n.now <= at && at < n.now+naiveDuration(w)
	case "more_than_ago":
		return at <= n.now-naiveDuration(w)
	}
	panic("unknown operator " + op)
}

func same(a, b any) bool {
	switch a := a.(type) {
	case json.Number:
		b, ok := b.(json.Number)
		return ok && rat(a).Cmp(rat(b)) == 0
	case string, bool:
		return a == b
	}
	return false
}

func rat(n json.Number) *big.Rat {
	r, ok := new(big.Rat).SetString(string(n))
	if !ok {
		panic("not a number: " + n)
	}
	return r
}

func naiveDate(v any) (int64, bool) {
	switch v := v.(type) {
	case string:
		for _, layout := range []string{time.RFC3339, time.DateOnly} {
			if at, err := time.Parse(layout, v); err == nil {
				return at.UnixMilli(), true
			}
		}
	case json.Number:
		ms := rat(v)
		if new(big.Rat).Abs(ms).Cmp(big.NewRat(100_000_000_000, 1)) < 0 {
			ms.Mul(ms, big.NewRat(1000, 1))
		}
		i := new(big.Int).Div(ms.Num(), ms.Denom()) // rounds down for a positive denominator
		return i.Int64(), i.IsInt64()
	}
	return 0, false
}

func naiveDuration(s string) int64 {
	d, err := time.ParseDuration(s) // the tests use no days here
	if err != nil {
		panic(err)
	}
	return d.Milliseconds()
}
