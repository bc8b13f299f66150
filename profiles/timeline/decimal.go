package timeline

import (
	"bytes"
	"cmp"
	"math/big"
	"math/bits"
	"strconv"
)

// Decimal is a decimal number, exactly: a coefficient × 10^exponent. It never changes. The zero value is 0.
//
// Sums need no more than to be added up and compared, in whatever order and without rounding, which takes integers. Almost
// all coefficients fit in 64 bits, where that is fast.
type Decimal struct {
	small    int64    // the coefficient, unless it is large
	large    *big.Int // the coefficient, if it does not fit in 64 bits
	exponent int32    // such that the coefficient does not end with a 0; 0 if it is 0
}

// NewDecimal returns ±DIGITS × 10^exponent. DIGITS are decimal digits; none are 0.
func NewDecimal(negative bool, digits []byte, exponent int) Decimal {
	digits = bytes.TrimLeft(digits, "0")
	trimmed := bytes.TrimRight(digits, "0")
	exponent += len(digits) - len(trimmed)
	switch {
	case len(trimmed) == 0:
		return Decimal{}
	case len(trimmed) > 18:
		c, _ := new(big.Int).SetString(string(trimmed), 10)
		if negative {
			c.Neg(c)
		}
		return newLarge(c, exponent)
	}
	var c int64
	for _, d := range trimmed {
		c = c*10 + int64(d-'0')
	}
	if negative {
		c = -c
	}
	return Decimal{small: c, exponent: int32(exponent)}
}

// NewInteger returns n.
func NewInteger(n int64) Decimal { return newSmall(n, 0) }

// newSmall returns c × 10^exponent.
func newSmall(c int64, exponent int) Decimal {
	if c == 0 {
		return Decimal{}
	}
	for c%10 == 0 {
		c /= 10
		exponent++
	}
	return Decimal{small: c, exponent: int32(exponent)}
}

// newLarge returns c × 10^exponent, and may keep c.
func newLarge(c *big.Int, exponent int) Decimal {
	if c.IsInt64() {
		return newSmall(c.Int64(), exponent)
	}
	for ten, rest := big.NewInt(10), new(big.Int); ; exponent++ {
		shorter, _ := new(big.Int).QuoRem(c, ten, rest)
		if rest.Sign() != 0 {
			break
		}
		if c = shorter; c.IsInt64() {
			return newSmall(c.Int64(), exponent+1)
		}
	}
	return Decimal{large: c, exponent: int32(exponent)}
}

// Sign returns -1, 0 or 1, as d is less than, equal to, or greater than 0.
func (d Decimal) Sign() int {
	if d.large != nil {
		return d.large.Sign()
	}
	return cmp.Compare(d.small, 0)
}

// Equal tells whether d and e are the same number.
func (d Decimal) Equal(e Decimal) bool { return d.Compare(e) == 0 }

// Compare returns -1, 0 or 1, as d is less than, equal to, or greater than e.
func (d Decimal) Compare(e Decimal) int {
	if s := cmp.Compare(d.Sign(), e.Sign()); s != 0 || d.Sign() == 0 {
		return s
	}
	if exponent := int(min(d.exponent, e.exponent)); d.large == nil && e.large == nil {
		x, ok := d.scaled(exponent)
		y, ok2 := e.scaled(exponent)
		if ok && ok2 {
			return cmp.Compare(x, y)
		}
	}
	x, y, _ := aligned(d, e)
	return x.Cmp(y)
}

// Add returns d + e.
func (d Decimal) Add(e Decimal) Decimal {
	switch {
	case e.Sign() == 0:
		return d
	case d.Sign() == 0:
		return e
	}
	if exponent := int(min(d.exponent, e.exponent)); d.large == nil && e.large == nil {
		x, ok := d.scaled(exponent)
		y, ok2 := e.scaled(exponent)
		if s := x + y; ok && ok2 && (s > x) == (y > 0) {
			return newSmall(s, exponent)
		}
	}
	x, y, exponent := aligned(d, e)
	return newLarge(x.Add(x, y), exponent)
}

// Negate returns -d.
func (d Decimal) Negate() Decimal { return d.Multiply(-1) }

// Multiply returns d × n.
func (d Decimal) Multiply(n int64) Decimal {
	if d.large == nil {
		if p, ok := multiply(d.small, n); ok {
			return newSmall(p, int(d.exponent))
		}
	}
	return newLarge(new(big.Int).Mul(d.coefficient(), big.NewInt(n)), int(d.exponent))
}

// Divide returns d / n, of which n must be positive, with at most so many digits after the point. What lies in the middle
// goes to the even digit.
func (d Decimal) Divide(n int64, places int) Decimal {
	x, y := new(big.Int).Abs(d.coefficient()), big.NewInt(n)
	if shift := int(d.exponent) + places; shift >= 0 {
		x.Mul(x, power(shift))
	} else {
		y.Mul(y, power(-shift))
	}
	rest := new(big.Int)
	x.QuoRem(x, y, rest)
	if order := rest.Lsh(rest, 1).Cmp(y); order > 0 || order == 0 && x.Bit(0) == 1 {
		x.Add(x, big.NewInt(1))
	}
	if d.Sign() < 0 {
		x.Neg(x)
	}
	return newLarge(x, -places)
}

// Append appends d as a JSON number, with an exponent unless it is 0.
func (d Decimal) Append(b []byte) []byte {
	if d.large != nil {
		b = d.large.Append(b, 10)
	} else {
		b = strconv.AppendInt(b, d.small, 10)
	}
	if d.exponent == 0 {
		return b
	}
	return strconv.AppendInt(append(b, 'e'), int64(d.exponent), 10)
}

// String returns d as [Decimal.Append] writes it.
func (d Decimal) String() string { return string(d.Append(nil)) }

// coefficient returns the coefficient, which must not be changed.
func (d Decimal) coefficient() *big.Int {
	if d.large != nil {
		return d.large
	}
	return big.NewInt(d.small)
}

// scaled returns the small coefficient that d has with an exponent, which is not greater than its own.
func (d Decimal) scaled(exponent int) (c int64, ok bool) {
	by := int(d.exponent) - exponent
	if by >= len(powers) {
		return 0, false
	}
	return multiply(d.small, powers[by])
}

// aligned returns the coefficients, which are the caller's, that a and b have with the same exponent.
func aligned(a, b Decimal) (x, y *big.Int, exponent int) {
	exponent = int(min(a.exponent, b.exponent))
	x = new(big.Int).Mul(a.coefficient(), power(int(a.exponent)-exponent))
	y = new(big.Int).Mul(b.coefficient(), power(int(b.exponent)-exponent))
	return x, y, exponent
}

// powers of ten.
var powers = [...]int64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18}

func power(n int) *big.Int { return new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(n)), nil) }

// multiply returns a × b if it fits.
func multiply(a, b int64) (p int64, ok bool) {
	hi, lo := bits.Mul64(magnitude(a), magnitude(b))
	if hi != 0 || lo > 1<<63-1 {
		return 0, false
	}
	if (a < 0) != (b < 0) {
		return -int64(lo), true
	}
	return int64(lo), true
}

func magnitude(a int64) uint64 {
	if a < 0 {
		return -uint64(a)
	}
	return uint64(a)
}
