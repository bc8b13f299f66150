package demo

import (
	"fmt"
	"strconv"
	"strings"
)

// money is an amount in thousandths of a pound: what the shop's prices are written in. It adds up exactly.
type money int64

func parseMoney(s string) (money, error) {
	whole, part, _ := strings.Cut(s, ".")
	if whole == "" || len(part) > 3 {
		return 0, fmt.Errorf("read the amount %q: must have up to three decimals", s)
	}
	n, err := strconv.ParseInt(whole+part+"000"[len(part):], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read the amount %q: %w", s, err)
	}
	return money(n), nil
}

// String returns the amount as a JSON number with two decimals, or three where it needs them.
func (m money) String() string {
	sign := ""
	if m < 0 {
		sign, m = "-", -m
	}
	s := fmt.Sprintf("%s%d.%03d", sign, m/1000, m%1000)
	return strings.TrimSuffix(s, "0")
}
