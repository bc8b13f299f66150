package timeline_test

import (
	"math/big"
	"testing"

	"pgregory.net/rapid"

	"github.com/mubatch/mubatch/profiles/timeline"
)

// Decimals are the rational numbers that they say they are, however long.
func TestDecimalsAreExact(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := anyDecimal().Draw(t, "a"), anyDecimal().Draw(t, "b")
		n := rapid.OneOf(rapid.Int64Range(1, 30), rapid.Int64Range(1, 1<<62)).Draw(t, "n")
		x, y := rational(t, a), rational(t, b)

		if got, want := a.Compare(b), x.Cmp(y); got != want {
			t.Errorf("%s compared with %s: %d, want %d", a, b, got, want)
		}
		if got, want := a.Sign(), x.Sign(); got != want {
			t.Errorf("sign of %s: %d, want %d", a, got, want)
		}
		same(t, "a+b", a.Add(b), new(big.Rat).Add(x, y))
		same(t, "b+a", b.Add(a), new(big.Rat).Add(x, y))
		same(t, "a-a", a.Add(a.Negate()), new(big.Rat))
		same(t, "a×n", a.Multiply(n), new(big.Rat).Mul(x, new(big.Rat).SetInt64(n)))
		same(t, "a×-n", a.Multiply(-n), new(big.Rat).Mul(x, new(big.Rat).SetInt64(-n)))

		// A quotient has so many places, is as near as can be, and even where two are.
		places := rapid.IntRange(0, 12).Draw(t, "places")
		exact := new(big.Rat).Quo(x, new(big.Rat).SetInt64(n))
		unit := new(big.Rat).SetFrac(big.NewInt(1), new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(places)), nil))
		units := new(big.Rat).Quo(rational(t, a.Divide(n, places)), unit)
		if !units.IsInt() {
			t.Fatalf("%s / %d = %s has more than %d places", a, n, a.Divide(n, places), places)
		}
		off := new(big.Rat).Sub(new(big.Rat).Quo(exact, unit), units)
		switch off.Abs(off).Cmp(big.NewRat(1, 2)) {
		case 1:
			t.Errorf("%s / %d = %s, off by more than half", a, n, a.Divide(n, places))
		case 0:
			if units.Num().Bit(0) == 1 {
				t.Errorf("%s / %d = %s is not even", a, n, a.Divide(n, places))
			}
		}
	})
}

// However a number came about, it is written in the same way.
func TestDecimalsHaveOneForm(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := anyDecimal().Draw(t, "a"), anyDecimal().Draw(t, "b")
		if back := a.Add(b).Add(b.Negate()); back.String() != a.String() {
			t.Errorf("%s + %s - %s is %s", a, b, b, back)
		}
	})
	for _, tt := range []struct {
		digits   string
		exponent int
		want     string
	}{
		{"0", 7, "0"},
		{"000", -7, "0"},
		{"1200", -2, "12"},
		{"0012", 0, "12"},
		{"9223372036854775807", 0, "9223372036854775807"},
		{"9223372036854775808", 0, "9223372036854775808"},
		{"922337203685477580800", 0, "9223372036854775808e2"},
		{"5", -400, "5e-400"},
	} {
		if got := timeline.NewDecimal(false, []byte(tt.digits), tt.exponent).String(); got != tt.want {
			t.Errorf("%se%d is %s, want %s", tt.digits, tt.exponent, got, tt.want)
		}
	}
}

func anyDecimal() *rapid.Generator[timeline.Decimal] {
	return rapid.Custom(func(t *rapid.T) timeline.Decimal {
		digits := rapid.OneOf(
			rapid.StringMatching(`[0-9]{1,3}`),
			rapid.StringMatching(`[0-9]{17,20}`),
			rapid.StringMatching(`[1-9]0{16,20}`),
			rapid.StringMatching(`[0-9]{34,60}`),
			rapid.SampledFrom([]string{"9223372036854775807", "9223372036854775808", "922337203685477580", "1", "5"}),
		).Draw(t, "digits")
		exponent := rapid.OneOf(rapid.IntRange(-3, 3), rapid.IntRange(-70, 40)).Draw(t, "exponent")
		return timeline.NewDecimal(rapid.Bool().Draw(t, "negative"), []byte(digits), exponent)
	})
}

func decimal(s string) timeline.Decimal {
	negative := s[0] == '-'
	if negative {
		s = s[1:]
	}
	whole, exponent := []byte{}, 0
	for i := range len(s) {
		if s[i] == '.' {
			exponent = i + 1 - len(s)
		} else {
			whole = append(whole, s[i])
		}
	}
	return timeline.NewDecimal(negative, whole, exponent)
}

func rational(t *rapid.T, d timeline.Decimal) *big.Rat {
	r, ok := new(big.Rat).SetString(d.String())
	if !ok {
		t.Fatalf("%s is no number", d)
	}
	return r
}

func same(t *rapid.T, what string, got timeline.Decimal, want *big.Rat) {
	if rational(t, got).Cmp(want) != 0 {
		t.Errorf("%s is %s, want %s", what, got, want)
	}
}
