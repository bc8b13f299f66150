package rule

import (
	"bytes"
	"cmp"
	"strconv"

	"github.com/mubatch/mubatch/profiles/timeline"
)

// number is a JSON number, exactly: sign × 0.DIGITS × 10^exp, where DIGITS are whole followed by fraction, and neither
// start nor end with a zero. It refers to the bytes that it was read from.
type number struct {
	sign            int // 0 for zero, which has no digits and no exponent
	exp             int
	whole, fraction []byte
}

// Exponents beyond this one are taken for it. They are far beyond what a rule may name, so they still compare right.
const maxExponent = 1 << 30

// parseNumber reads a JSON number.
func parseNumber(b []byte) (n number, ok bool) {
	n.sign = 1
	if len(b) > 0 && b[0] == '-' {
		n.sign, b = -1, b[1:]
	}
	n.whole, b = digits(b)
	if len(n.whole) == 0 {
		return number{}, false
	}
	n.exp = len(n.whole)
	if len(b) > 0 && b[0] == '.' {
		n.fraction, b = digits(b[1:])
		if len(n.fraction) == 0 {
			return number{}, false
		}
	}
	if len(b) > 0 && (b[0] == 'e' || b[0] == 'E') {
		exp, ok := parseExponent(b[1:])
		if !ok {
			return number{}, false
		}
		n.exp += exp
	} else if len(b) > 0 {
		return number{}, false
	}

	for len(n.whole) > 0 && n.whole[0] == '0' {
		n.whole = n.whole[1:]
		n.exp--
	}
	if len(n.whole) == 0 {
		for len(n.fraction) > 0 && n.fraction[0] == '0' {
			n.fraction = n.fraction[1:]
			n.exp--
		}
	}
	n.fraction = bytes.TrimRight(n.fraction, "0")
	if len(n.fraction) == 0 {
		n.whole = bytes.TrimRight(n.whole, "0")
	}
	if n.len() == 0 {
		return number{}, true
	}
	return n, true
}

func digits(b []byte) (digits, rest []byte) {
	i := 0
	for i < len(b) && '0' <= b[i] && b[i] <= '9' {
		i++
	}
	return b[:i], b[i:]
}

func parseExponent(b []byte) (exp int, ok bool) {
	sign := 1
	if len(b) > 0 && (b[0] == '+' || b[0] == '-') {
		if b[0] == '-' {
			sign = -1
		}
		b = b[1:]
	}
	d, rest := digits(b)
	if len(d) == 0 || len(rest) > 0 {
		return 0, false
	}
	for _, c := range d {
		exp = min(exp*10+int(c-'0'), maxExponent)
	}
	return sign * exp, true
}

func (n number) len() int { return len(n.whole) + len(n.fraction) }

func (n number) digit(i int) byte {
	if i < len(n.whole) {
		return n.whole[i]
	}
	return n.fraction[i-len(n.whole)]
}

// compare returns -1, 0 or 1, as n is less than, equal to, or greater than o.
func (n number) compare(o number) int {
	if n.sign != o.sign || n.sign == 0 {
		return cmp.Compare(n.sign, o.sign)
	}
	if n.exp != o.exp {
		return n.sign * cmp.Compare(n.exp, o.exp)
	}
	for i := range min(n.len(), o.len()) {
		if a, b := n.digit(i), o.digit(i); a != b {
			return n.sign * cmp.Compare(a, b)
		}
	}
	return n.sign * cmp.Compare(n.len(), o.len())
}

// decimal returns n as a number to calculate with.
func (n number) decimal() timeline.Decimal {
	var digits [2 * maxDigits]byte
	return timeline.NewDecimal(n.sign < 0, append(append(digits[:0], n.whole...), n.fraction...), n.exp-n.len())
}

// appendDecimal appends the one way to write a number.
func appendDecimal(b []byte, d timeline.Decimal) []byte {
	n, _ := parseNumber(d.Append(nil))
	return n.append(b)
}

// append appends the one way to write n: plainly if it has at most 21 digits before the point and at most 5 zeros after
// it, otherwise with an exponent.
func (n number) append(b []byte) []byte {
	if n.sign == 0 {
		return append(b, '0')
	}
	if n.sign < 0 {
		b = append(b, '-')
	}
	size := n.len()
	switch {
	case 0 < n.exp && n.exp <= 21:
		for i := range max(size, n.exp) {
			switch {
			case i == n.exp:
				b = append(b, '.', n.digit(i))
			case i < size:
				b = append(b, n.digit(i))
			default:
				b = append(b, '0')
			}
		}
		return b
	case -6 < n.exp && n.exp <= 0:
		b = append(append(b, '0', '.'), "00000"[:-n.exp]...)
		return append(append(b, n.whole...), n.fraction...)
	}
	b = append(b, n.digit(0))
	for i := 1; i < size; i++ {
		if i == 1 {
			b = append(b, '.')
		}
		b = append(b, n.digit(i))
	}
	return strconv.AppendInt(append(b, 'e'), int64(n.exp)-1, 10)
}

// floor returns the largest integer that is at most n × 10^shift, if it has at most 18 digits.
func (n number) floor(shift int) (i int64, ok bool) {
	exp := n.exp + shift
	if exp > 18 {
		return 0, false
	}
	for k := range max(exp, 0) {
		i *= 10
		if k < n.len() {
			i += int64(n.digit(k) - '0')
		}
	}
	if i *= int64(n.sign); n.sign < 0 && n.len() > exp {
		i--
	}
	return i, true
}
