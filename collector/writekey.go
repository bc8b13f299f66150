package collector

import (
	"crypto/rand"
	"hash/crc32"
	"math/big"
	"strings"
)

// A write key is "mub_wk_", 22 random characters (131 bits) and 6 that check them, so that a typing error is told from
// a key we do not know without asking anybody, and so that scanners for leaked secrets recognise it.
const (
	writeKeyPrefix = "mub_wk_"
	writeKeyRandom = 22
	writeKeyCheck  = 6
	base62         = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// NewWriteKey returns a write key that nobody has.
func NewWriteKey() string {
	var random [writeKeyRandom]byte
	for i := range random {
		n, err := rand.Int(rand.Reader, big.NewInt(int64(len(base62))))
		if err != nil { // the system's source of randomness never fails
			panic(err)
		}
		random[i] = base62[n.Int64()]
	}
	return writeKeyPrefix + string(random[:]) + writeKeyChecksum(string(random[:]))
}

func writeKeyChecksum(random string) string {
	sum := crc32.ChecksumIEEE([]byte(random))
	var check [writeKeyCheck]byte
	for i := len(check) - 1; i >= 0; i-- {
		check[i] = base62[sum%uint32(len(base62))]
		sum /= uint32(len(base62))
	}
	return string(check[:])
}

// wellFormed tells whether key could be one that [NewWriteKey] made.
func wellFormed(key string) bool {
	rest, ok := strings.CutPrefix(key, writeKeyPrefix)
	if !ok || len(rest) != writeKeyRandom+writeKeyCheck {
		return false
	}
	return rest[writeKeyRandom:] == writeKeyChecksum(rest[:writeKeyRandom])
}
