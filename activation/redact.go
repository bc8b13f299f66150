package activation

import (
	"regexp"
	"strings"
	"unicode/utf8"
)

// MaxExcerpt is how much of an answer is kept, in bytes.
const MaxExcerpt = 1024

// personal matches what may be an e-mail address, a phone number, a token, a hash or an internal address.
var personal = regexp.MustCompile(strings.Join([]string{
	`[^\s"'<>,;:(){}\[\]]+(?:@|%40)[^\s"'<>,;(){}\[\]]+`, // e-mail
	`(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?`,                   // IPv4
	`\+?\d[\d ()./-]{5,}\d`,                              // phone, card, long id
	`[A-Za-z0-9_+/=-]{24,}`,                              // token, hash
	`(?:[0-9A-Fa-f]{0,4}:){3,}[0-9A-Fa-f]{0,4}`,          // IPv6
}, "|"))

// Redact returns the beginning of a partner's answer in a form that may be stored and shown: at most [MaxExcerpt] bytes of
// valid UTF-8, on one line, with everything that looks like personal data, a secret or an address replaced by an ellipsis.
func Redact(answer []byte) string {
	if len(answer) > 4*MaxExcerpt {
		answer = answer[:4*MaxExcerpt]
	}
	s := strings.ToValidUTF8(string(answer), "")
	s = personal.ReplaceAllString(s, "…")
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }), " ")
	if len(s) > MaxExcerpt {
		s = s[:MaxExcerpt]
		for !utf8.ValidString(s) {
			s = s[:len(s)-1]
		}
	}
	return s
}
