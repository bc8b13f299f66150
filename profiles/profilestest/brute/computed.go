package brute

import (
	"encoding/json"
	"math/big"
	"time"
)

// Value returns the value of a decoded computed trait for p at the moment now: nil, a string, a truth value, or a
// json.Number.
func Value(computed any, p *Person, now int64) any {
	node := computed.(map[string]any)
	q := question{p, nil, now}
	for _, aggregate := range []string{"sum", "avg", "min", "max"} {
		if spec, ok := node[aggregate].(map[string]any); ok {
			n, ok := total(aggregate, numbersOf(q.inWindow(node, roughly), spec["property"].(string)))
			if !ok {
				return nil
			}
			if aggregate == "avg" {
				n = round(n)
			}
			return json.Number(plain(n))
		}
	}
	if spec, ok := node["distinct"].(map[string]any); ok {
		return number(min(1000, len(different(q.inWindow(node, exactly), spec["property"].(string)))))
	}
	if spec, ok := node["first"].(map[string]any); ok {
		return shown(first(q.inWindow(node, roughly), spec["property"]))
	}
	if spec, ok := node["last"].(map[string]any); ok {
		return shown(last(q.inWindow(node, exactly), spec["property"]))
	}
	return number(len(q.inWindow(node, roughly)))
}

func number(n int) json.Number { return json.Number(whole(n).RatString()) }

// shown returns a moment as text, to the millisecond, and a value as it is.
func shown(v any) any {
	if at, ok := v.(int64); ok {
		return time.UnixMilli(at).UTC().Format("2006-01-02T15:04:05.000Z")
	}
	return v
}

// round cuts n to 12 digits behind the point, a half to the even one.
func round(n *big.Rat) *big.Rat {
	shift := rational("1e12")
	scaled := new(big.Rat).Mul(n, shift)
	below := floor(scaled)
	rest := new(big.Rat).Sub(scaled, new(big.Rat).SetInt(below))
	half := rest.Cmp(big.NewRat(1, 2))
	if half > 0 || half == 0 && below.Bit(0) == 1 {
		below.Add(below, big.NewInt(1))
	}
	return new(big.Rat).Quo(new(big.Rat).SetInt(below), shift)
}
