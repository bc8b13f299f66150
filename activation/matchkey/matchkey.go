// Package matchkey makes of what a shop knows of a person the keys that partners match people by: normalised as each of
// them wants it, and hashed.
//
//	raw ──► Recipe.Email, Recipe.Phone, Device, … ──► text ──► Hex, Base64 ──► what is sent
//
// Partners disagree about nearly everything: dots in Gmail addresses, plus signs before phone numbers, what is hashed at
// all. A [Recipe] is what one of them says of e-mail addresses and phone numbers; its other fields are for its own package.
// A wrong recipe is not refused by anybody: the person is just never found. So every recipe is held to that partner's own
// published examples by a test.
//
// What is no e-mail address or phone number has no key, nor has a placeholder such as "null". A value that is a hash
// already is passed on as it is, and never hashed again.
package matchkey

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"unicode"
)

// Text is a normalised value. One that came as a hash is passed on as it is.
type Text struct {
	value  string
	hashed bool
}

// String returns the text, or the hash that it came as.
func (t Text) String() string { return t.value }

// Hashed tells whether the value came as a hash, of which nobody knows how it was made.
func (t Text) Hashed() bool { return t.hashed }

// Hex returns the SHA-256 of the text in UTF-8, as 64 lower-case hexadecimal digits.
func (t Text) Hex() string {
	if t.hashed {
		return t.value
	}
	return Hex(t.value)
}

// Base64 returns the SHA-256 of the text in UTF-8, as padded standard base64.
func (t Text) Base64() string {
	if t.hashed {
		sum, _ := hex.DecodeString(t.value) // it was checked
		return base64.StdEncoding.EncodeToString(sum)
	}
	sum := sha256.Sum256([]byte(t.value))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// Hex returns the SHA-256 of a text in UTF-8, as 64 lower-case hexadecimal digits.
func Hex(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// prehashed reads a value that is a SHA-256 in hexadecimal digits.
func prehashed(raw string) (Text, bool) {
	s := strings.ToLower(trim(raw))
	if len(s) != 2*sha256.Size {
		return Text{}, false
	}
	if _, err := hex.DecodeString(s); err != nil {
		return Text{}, false
	}
	return Text{s, true}, true
}

// Other returns a value of a kind for which a partner has a rule of its own: a name, a place. The rule gets it without the
// space around it, and returns "" for what is none. A hash is passed on as it is.
func Other(raw string, rule func(string) string) (t Text, ok bool) {
	if t, ok := prehashed(raw); ok {
		return t, !Poisoned(t.value)
	}
	if Nothing(raw) {
		return Text{}, false
	}
	s := rule(trim(raw))
	return Text{value: s}, s != ""
}

// nothing are the words that programs write where there is no value.
var nothing = map[string]bool{
	"": true, "null": true, "undefined": true, "none": true, "nil": true, "nan": true, "n/a": true, "na": true, "unknown": true,
	"(null)": true, "(none)": true, "[object object]": true,
}

// Nothing tells whether a value stands for none: it is empty, or one of the words that programs write for that.
func Nothing(raw string) bool { return nothing[strings.ToLower(trim(raw))] }

// poison are the hashes of such words, in hexadecimal digits.
var poison = func() map[string]bool {
	hashes := map[string]bool{}
	for word := range nothing {
		hashes[Hex(word)] = true
	}
	return hashes
}()

// Poisoned tells whether a hash, in hexadecimal digits, is that of a word which stands for no value. All whose value is
// missing would be taken for one person.
func Poisoned(hash string) bool { return poison[strings.ToLower(hash)] }

// trim takes away white space and control characters around a value.
func trim(s string) string {
	return strings.TrimFunc(s, func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r) || r == '\u200b' || r == '\ufeff'
	})
}
