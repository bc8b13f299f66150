package mapping

import (
	"strconv"
	"strings"
)

// decimal is an exact number: digits, an integer, times ten to the power of exponent.
type decimal struct {
	negative bool
	digits   string // without leading zeros; empty for zero
	exponent int
}

// Bounds of a decimal. Intake has the same.
const (
	maxDigits   = 40
	maxExponent = 308
)

// parseDecimal reads a number as people and JSON write it: 12, -3.50, .5, +1e-7, 007. Separators of thousands are refused:
// where they stand, nobody knows what a comma means.
func parseDecimal(s string) (decimal, bool) {
	var d decimal
	s, exp, hasExponent := cutExponent(s)
	if hasExponent {
		n, err := strconv.Atoi(exp)
		if err != nil || n > maxExponent || n < -maxExponent {
			return d, false
		}
		d.exponent = n
	}
	if s != "" && (s[0] == '-' || s[0] == '+') {
		d.negative = s[0] == '-'
		s = s[1:]
	}
	whole, fraction, _ := strings.Cut(s, ".")
	digits := whole + fraction
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return d, false
	}
	d.exponent -= len(fraction)
	d.digits = strings.TrimLeft(digits, "0")
	size := d.exponent + len(d.digits)
	if len(d.digits) > maxDigits || d.exponent < -maxExponent || size > maxExponent {
		return d, false
	}
	return d, true
}

func cutExponent(s string) (mantissa, exponent string, found bool) {
	i := strings.IndexAny(s, "eE")
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// shift returns d times ten to the power of n.
func (d decimal) shift(n int) decimal {
	d.exponent += n
	return d
}

// whole returns d without its fraction.
func (d decimal) whole() decimal {
	if d.exponent < 0 {
		d.digits = d.digits[:max(0, len(d.digits)+d.exponent)]
		d.exponent = 0
	}
	return d
}

// String returns d as JSON, without an exponent, with as many digits behind the point as there were.
func (d decimal) String() string {
	s := d.digits
	switch {
	case d.exponent > 0 && s != "":
		s += strings.Repeat("0", d.exponent)
	case d.exponent < 0:
		if missing := 1 - d.exponent - len(s); missing > 0 {
			s = strings.Repeat("0", missing) + s
		}
		s = s[:len(s)+d.exponent] + "." + s[len(s)+d.exponent:]
	}
	if s == "" {
		s = "0"
	}
	if d.negative && d.digits != "" {
		s = "-" + s
	}
	return s
}
