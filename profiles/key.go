package profiles

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgtype"
)

// Kinds of identifiers that every workspace knows. Any other kind is a custom one, from context.externalIds.
const (
	UserID      = "user_id"
	AnonymousID = "anonymous_id"
	Email       = "email"
	Phone       = "phone"
)

// Identifier is one name under which somebody is known.
type Identifier struct {
	Kind  string `json:"kind"`
	Value string `json:"value"`
}

func (id Identifier) String() string { return id.Kind + ":" + id.Value }

// ParseIdentifier reads "kind:value". The value may hold further colons.
func ParseIdentifier(s string) (Identifier, error) {
	kind, value, ok := strings.Cut(s, ":")
	if !ok || kind == "" || value == "" {
		return Identifier{}, fmt.Errorf("%q is not of the form kind:value", s)
	}
	return Identifier{Kind: kind, Value: value}, nil
}

// Key stands for an identifier without telling its value: 128 bits of HMAC-SHA-256 under the workspace's secret.
// A profile's id is the key of its root identifier.
type Key [16]byte

// Secret is a workspace's secret. Whoever does not have it cannot tell which value a [Key] stands for.
type Secret []byte

// Key returns the key of id. The same identifier has the same key in one workspace, and another in every other.
func (s Secret) Key(id Identifier) Key {
	mac := hmac.New(sha256.New, s)
	mac.Write([]byte(id.Kind))
	mac.Write([]byte{0})
	mac.Write([]byte(id.Value))
	return Key(mac.Sum(nil)[:16])
}

// Lane returns the home lane of k, of the given number of lanes.
func (k Key) Lane(lanes int) int {
	return int(binary.BigEndian.Uint64(k[:8]) % uint64(lanes))
}

// String returns k as an id of the API: "p_" and 32 hexadecimal digits.
func (k Key) String() string { return "p_" + hex.EncodeToString(k[:]) }

// MarshalText returns the same as [Key.String].
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads what [Key.MarshalText] writes.
func (k *Key) UnmarshalText(b []byte) (err error) {
	*k, err = ParseKey(string(b))
	return err
}

// ParseKey reads what [Key.String] writes.
func ParseKey(s string) (Key, error) {
	digits, ok := strings.CutPrefix(s, "p_")
	b, err := hex.DecodeString(digits)
	if !ok || err != nil || len(b) != len(Key{}) {
		return Key{}, errors.New("not a profile id: want p_ and 32 hexadecimal digits")
	}
	return Key(b), nil
}

// MessageKey is the dedupe key of a messageId: 128 bits of its SHA-256, compared byte for byte, without folding.
func MessageKey(messageID string) Key {
	sum := sha256.Sum256([]byte(messageID))
	return Key(sum[:16])
}

// normal returns the form in which an identifier is compared: e-mail addresses without surrounding space and in lower
// case, phone numbers without spaces and punctuation, others as they are.
func (id Identifier) normal() Identifier {
	switch id.Kind {
	case Email:
		id.Value = strings.ToLower(strings.TrimSpace(id.Value))
	case Phone:
		id.Value = strings.Map(func(r rune) rune {
			if r == '+' || r >= '0' && r <= '9' {
				return r
			}
			return -1
		}, id.Value)
	}
	return id
}

// UUIDValue lets a key be written to a uuid column.
func (k Key) UUIDValue() (pgtype.UUID, error) { return pgtype.UUID{Bytes: k, Valid: true}, nil }

// ScanUUID lets a key be read from a uuid column.
func (k *Key) ScanUUID(v pgtype.UUID) error {
	if !v.Valid {
		return errors.New("cannot read NULL into a key")
	}
	*k = v.Bytes
	return nil
}
