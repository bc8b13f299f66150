package brute

import (
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
)

// event decides a condition on what somebody did: how often, or what came of its properties.
func (q question) event(node map[string]any) bool {
	for _, aggregate := range []string{"sum", "avg", "min", "max"} {
		if spec, ok := node[aggregate].(map[string]any); ok {
			n, ok := total(aggregate, numbersOf(q.inWindow(node, roughly), spec["property"].(string)))
			return ok && inBounds(n, spec)
		}
	}
	if spec, ok := node["distinct"].(map[string]any); ok {
		n := len(different(q.inWindow(node, exactly), spec["property"].(string)))
		return inBounds(whole(n), spec)
	}
	if spec, ok := node["first"].(map[string]any); ok {
		return q.end(first(q.inWindow(node, roughly), spec["property"]), spec)
	}
	if spec, ok := node["last"].(map[string]any); ok {
		return q.end(last(q.inWindow(node, exactly), spec["property"]), spec)
	}
	n := whole(len(q.inWindow(node, exactly)))
	if bounds, ok := node["count"].(map[string]any); ok {
		return inBounds(n, bounds)
	}
	return n.Sign() > 0
}

func whole(n int) *big.Rat { return big.NewRat(int64(n), 1) }

// Whether the end of a sliding window is exact, or that of the occurrence's bucket is waited for.
const (
	exactly = false
	roughly = true
)

// inWindow returns the occurrences of node that are in its window now. There is no end to a window in the future.
func (q question) inWindow(node map[string]any, rough bool) (in []Occurrence) {
	for _, e := range q.occurrences(node) {
		if q.isInWindow(node, e.At, rough) {
			in = append(in, e)
		}
	}
	return in
}

func (q question) isInWindow(node map[string]any, at int64, rough bool) bool {
	if between, ok := node["between"].(map[string]any); ok {
		if from, ok := between["from"]; ok && at < mustDate(from) {
			return false
		}
		if to, ok := between["to"]; ok && at >= mustDate(to) {
			return false
		}
	}
	if within, ok := node["within"].(string); ok {
		d := duration(within)
		if rough {
			at = bucketEnd(at, resolution(d))
		}
		return q.now < at+d
	}
	return true
}

// resolutions are the widths of buckets.
var resolutions = []string{
	"1s", "2s", "5s", "10s", "15s", "30s", "1m", "2m", "5m", "10m", "15m", "30m", "1h", "2h", "3h", "6h", "12h", "1d", "2d", "7d",
}

// resolution returns the width of the buckets for a window of d milliseconds: the smallest that 720 of span it.
func resolution(d int64) int64 {
	for _, r := range resolutions {
		if 720*duration(r) >= d {
			return duration(r)
		}
	}
	panic(fmt.Sprintf("a window of %d ms is too long", d))
}

// bucketEnd returns when the bucket ends in which at is.
func bucketEnd(at, width int64) int64 {
	start := at - at%width
	if start > at { // before 1970
		start -= width
	}
	return start + width
}

// numbersOf returns the numbers that a property has in the occurrences, without those that are too long, too large or too
// small to be reckoned with.
func numbersOf(events []Occurrence, property string) (numbers []*big.Rat) {
	for _, e := range events {
		for _, v := range spread(find(e.Properties, property)) {
			if n, ok := v.(json.Number); ok && reckoned(n) {
				numbers = append(numbers, rational(n))
			}
		}
	}
	return numbers
}

const maxDigits = 34

func reckoned(n json.Number) bool {
	r := rational(n)
	if r.Sign() == 0 {
		return true
	}
	size := new(big.Rat).Abs(r)
	return digits(n) <= maxDigits && size.Cmp(rational("1e-34")) >= 0 && size.Cmp(rational("1e34")) < 0
}

// digits counts the significant digits of a number.
func digits(n json.Number) int {
	mantissa, _, _ := strings.Cut(strings.ToLower(string(n)), "e")
	return len(strings.Trim(strings.NewReplacer("-", "", ".", "").Replace(mantissa), "0"))
}

// total returns the sum, the average, the least or the greatest of numbers. Only a sum is there if there are none.
func total(aggregate string, numbers []*big.Rat) (*big.Rat, bool) {
	sum := new(big.Rat)
	var least, greatest *big.Rat
	for _, n := range numbers {
		sum.Add(sum, n)
		if least == nil || n.Cmp(least) < 0 {
			least = n
		}
		if greatest == nil || n.Cmp(greatest) > 0 {
			greatest = n
		}
	}
	switch {
	case aggregate == "sum":
		return sum, true
	case len(numbers) == 0:
		return nil, false
	case aggregate == "avg":
		return sum.Quo(sum, whole(len(numbers))), true
	case aggregate == "min":
		return least, true
	}
	return greatest, true
}

// different returns the different strings, numbers, and truth values that a property has in the occurrences.
func different(events []Occurrence, property string) map[any]bool {
	values := map[any]bool{}
	for _, e := range events {
		for _, v := range spread(find(e.Properties, property)) {
			switch v := v.(type) {
			case string, bool:
				values[v] = true
			case json.Number:
				values[fraction(rational(v).RatString())] = true
			}
		}
	}
	return values
}

// fraction is a number, not to be taken for a string.
type fraction string

// first returns what the property is in the earliest occurrence that has one, or that occurrence's time if no property is
// asked for; nil if there is none. At the same time the value that is written as the smallest text is the first, the
// greatest the last.
func first(events []Occurrence, property any) any {
	return furthest(events, property, func(a, b moment) bool { return a.at < b.at || a.at == b.at && a.text < b.text })
}

func last(events []Occurrence, property any) any {
	return furthest(events, property, func(a, b moment) bool { return a.at > b.at || a.at == b.at && a.text > b.text })
}

// moment is a value that something had.
type moment struct {
	at    int64
	value any
	text  string
}

func furthest(events []Occurrence, property any, further func(a, b moment) bool) any {
	var best *moment
	for _, e := range events {
		for _, m := range moments(e, property) {
			if best == nil || further(m, *best) {
				best = &m
			}
		}
	}
	if best == nil {
		return nil
	}
	return best.value
}

// maxText is how long a string may be to be remembered, in bytes.
const maxText = 512

// moments returns the values that a property has in one occurrence, or its time.
func moments(e Occurrence, property any) (list []moment) {
	if property == nil {
		return []moment{{at: e.At, value: e.At}}
	}
	for _, v := range spread(find(e.Properties, property.(string))) {
		switch v := v.(type) {
		case string:
			if len(v) <= maxText {
				list = append(list, moment{e.At, v, canonical(v)})
			}
		case json.Number, bool:
			list = append(list, moment{e.At, v, canonical(v)})
		}
	}
	return list
}

// end decides a condition on the value, or the time, of the earliest or the latest occurrence. Nothing meets none.
func (q question) end(v any, spec map[string]any) bool {
	op, want := spec["op"].(string), spec["value"]
	switch v := v.(type) {
	case nil:
		return false
	case int64:
		return dated(v, op, want, q.now)
	}
	return meets([]any{v}, op, want, q.now)
}

// canonical writes a scalar as JSON, the same for equal ones.
func canonical(v any) string {
	switch v := v.(type) {
	case string:
		var b strings.Builder
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		if err := e.Encode(v); err != nil {
			panic(err)
		}
		return strings.TrimSuffix(b.String(), "\n")
	case bool:
		return fmt.Sprint(v)
	case json.Number:
		return short(rational(v))
	}
	panic(fmt.Sprintf("%v is no scalar", v))
}

// short writes a decimal number as RFC 8785 does, but with all its digits and no plus sign: from 1e21 on and below 1e-6
// with an exponent.
func short(r *big.Rat) string {
	if r.Sign() == 0 {
		return "0"
	}
	sign, all := "", plain(r)
	if r.Sign() < 0 {
		sign, all = "-", all[1:]
	}
	before, behind, _ := strings.Cut(all, ".")
	exponent := len(before) - 1 // of the first digit that is not 0
	if before == "0" {
		exponent = -1 - (len(behind) - len(strings.TrimLeft(behind, "0")))
	}
	if -7 < exponent && exponent < 21 {
		return sign + all
	}
	digits := strings.Trim(before+behind, "0")
	if len(digits) > 1 {
		digits = digits[:1] + "." + digits[1:]
	}
	return fmt.Sprintf("%s%se%d", sign, digits, exponent)
}

// plain writes a decimal number with all its digits and no others.
func plain(r *big.Rat) string {
	n, _ := r.FloatPrec() // digits behind the point; every decimal has an end
	return r.FloatString(n)
}
