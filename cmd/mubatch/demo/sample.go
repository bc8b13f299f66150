package demo

import (
	"crypto/sha256"
	"encoding/binary"
)

// InSample tells whether the sample has an invoice. It has all of some customers' invoices, so that what is known of them
// is true, and some of the guests'. The customers of the first and of the last invoice are always among them, so that
// dates are moved by as much as those of the full data set.
func InSample(customer, number string) bool {
	switch customer {
	case "17850", "12680":
		return true
	case "":
		return oneIn(60, number)
	default:
		return oneIn(25, customer)
	}
}

func oneIn(n uint32, s string) bool {
	hash := sha256.Sum256([]byte(s))
	return binary.BigEndian.Uint32(hash[:])%n == 0
}
