package brute

import (
	"encoding/json"
	"fmt"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// find returns the values that a path leads to, without null.
func find(value any, path string) []any {
	return follow(value, strings.Split(path, "."))
}

func follow(value any, steps []string) (found []any) {
	if len(steps) == 0 {
		if value == nil {
			return nil
		}
		return []any{value}
	}
	switch v := value.(type) {
	case map[string]any:
		for n := 1; n <= len(steps); n++ { // a name may itself hold dots
			if member, ok := v[strings.Join(steps[:n], ".")]; ok {
				found = append(found, follow(member, steps[n:])...)
			}
		}
	case []any:
		if i, err := strconv.Atoi(steps[0]); err == nil && 0 <= i && i < len(v) {
			found = append(found, follow(v[i], steps[1:])...)
		}
		for _, element := range v {
			if object, ok := element.(map[string]any); ok {
				found = append(found, follow(object, steps)...)
			}
		}
	}
	return found
}

// spread replaces arrays by their elements.
func spread(values []any) (single []any) {
	for _, v := range values {
		if array, ok := v.([]any); ok {
			single = append(single, array...)
		} else {
			single = append(single, v)
		}
	}
	return single
}

// meets tells whether what a path led to meets a condition. The negative operators are the opposite of the others.
func meets(found []any, op string, want any, now int64) bool {
	switch op {
	case "neq":
		return !meets(found, "eq", want, now)
	case "not_in":
		return !meets(found, "in", want, now)
	case "not_contains":
		return !meets(found, "contains", want, now)
	case "not_exists":
		return !meets(found, "exists", want, now)
	case "exists":
		return len(found) > 0
	case "contains":
		for _, v := range found {
			if contains(v, want) {
				return true
			}
		}
		return false
	}
	for _, v := range spread(found) {
		if one(v, op, want, now) {
			return true
		}
	}
	return false
}

// contains tells whether a string holds a string, or an array an equal element.
func contains(v, want any) bool {
	switch v := v.(type) {
	case string:
		part, ok := want.(string)
		return ok && strings.Contains(v, part)
	case []any:
		for _, element := range v {
			if equal(element, want) {
				return true
			}
		}
	}
	return false
}

// one tells whether one value meets a condition.
func one(v any, op string, want any, now int64) bool {
	switch op {
	case "eq":
		return equal(v, want)
	case "in":
		for _, w := range want.([]any) {
			if equal(v, w) {
				return true
			}
		}
		return false
	case "gt", "gte", "lt", "lte":
		n, ok := v.(json.Number)
		return ok && inBound(rational(n), op, rational(want.(json.Number)))
	case "starts_with", "ends_with", "matches":
		s, ok := v.(string)
		return ok && like(s, op, want.(string))
	}
	at, ok := date(v)
	return ok && dated(at, op, want, now)
}

// Equal tells whether two numbers are the same, however they are written.
func Equal(a, b json.Number) bool { return rational(a).Cmp(rational(b)) == 0 }

func equal(a, b any) bool {
	x, number := a.(json.Number)
	y, too := b.(json.Number)
	if number && too {
		return Equal(x, y)
	}
	switch a.(type) {
	case string, bool:
		return a == b
	}
	return false
}

func like(s, op, want string) bool {
	switch op {
	case "starts_with":
		return strings.HasPrefix(s, want)
	case "ends_with":
		return strings.HasSuffix(s, want)
	}
	return regexp.MustCompile(want).MatchString(s)
}

// dated compares a date with another, or with the present.
func dated(at int64, op string, want any, now int64) bool {
	switch op {
	case "before":
		return at < mustDate(want)
	case "after":
		return at > mustDate(want)
	case "within_last":
		return at <= now && now < at+duration(want.(string))
	case "within_next":
		return now <= at && at < now+duration(want.(string))
	case "more_than_ago":
		return at+duration(want.(string)) <= now
	}
	panic(fmt.Sprintf("%v is no operator", op))
}

func rational(n json.Number) *big.Rat {
	r, ok := new(big.Rat).SetString(string(n))
	if !ok {
		panic(fmt.Sprintf("%v is no number", n))
	}
	return r
}

// inBound tells whether n is, say, greater than bound.
func inBound(n *big.Rat, op string, bound *big.Rat) bool {
	switch order := n.Cmp(bound); op {
	case "gt":
		return order > 0
	case "gte":
		return order >= 0
	case "lt":
		return order < 0
	case "lte":
		return order <= 0
	case "eq":
		return order == 0
	}
	panic(fmt.Sprintf("%v is no bound", op))
}

// inBounds tells whether n meets every member of bounds.
func inBounds(n *big.Rat, bounds map[string]any) bool {
	for op, bound := range bounds {
		if op != "property" && !inBound(n, op, rational(bound.(json.Number))) {
			return false
		}
	}
	return true
}

// date reads a date, cut to the millisecond: RFC 3339, YYYY-MM-DD, Unix seconds or, from 100,000,000,000 on, milliseconds.
func date(v any) (int64, bool) {
	var at time.Time
	switch v := v.(type) {
	case string:
		var err error
		if at, err = time.Parse(time.RFC3339Nano, v); err != nil {
			if at, err = time.Parse(time.DateOnly, v); err != nil {
				return 0, false
			}
		}
	case json.Number:
		n := rational(v)
		if n.Cmp(big.NewRat(100_000_000_000, 1)) < 0 {
			n.Mul(n, big.NewRat(1000, 1))
		}
		ms := floor(n)
		if !ms.IsInt64() {
			return 0, false
		}
		return ms.Int64(), true
	default:
		return 0, false
	}
	return at.UnixMilli(), true
}

func mustDate(v any) int64 {
	at, ok := date(v)
	if !ok {
		panic(fmt.Sprintf("%v is no date", v))
	}
	return at
}

// floor returns the greatest integer that is not above n.
func floor(n *big.Rat) *big.Int {
	return new(big.Int).Div(n.Num(), n.Denom()) // Euclidean, and the denominator is positive
}

var units = map[byte]int64{'s': 1000, 'm': 60_000, 'h': 3_600_000, 'd': 86_400_000, 'w': 7 * 86_400_000}

// duration reads "1d12h" as milliseconds.
func duration(s string) (ms int64) {
	number := int64(0)
	for i := range len(s) {
		if '0' <= s[i] && s[i] <= '9' {
			number = 10*number + int64(s[i]-'0')
			continue
		}
		ms += number * units[s[i]]
		number = 0
	}
	return ms
}
