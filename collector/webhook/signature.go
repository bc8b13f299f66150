package webhook

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// signature is how requests are signed.
type signature struct {
	header    string
	prefix    string // of each signature, which must be there
	hash      func() hash.Hash
	decode    func(string) ([]byte, error)
	plain     bool          // a hash of secret and text, as some did before they knew HMAC
	timestamp string        // the header with the time, if that is signed
	unit      time.Duration // of the time; zero: there is none

	key    func(secret string) ([]byte, error)                                       // nil: the bytes of the secret
	split  func(h http.Header, value string) (timestamp string, signatures []string) // nil: the header is one signature
	around func(r *http.Request, timestamp string) [][2]string                       // what is signed before and behind the body, or what may be; nil: nothing
}

// maxSignatures bounds how many signatures of a request are looked at.
const maxSignatures = 16

// verifier returns what verifies such signatures: one of the request's must be made with one of the secrets.
func (s signature) verifier(secrets []string, tolerance time.Duration) verifier {
	keys := make([][]byte, len(secrets))
	for i, secret := range secrets {
		keys[i] = []byte(secret)
		if s.key != nil {
			keys[i], _ = s.key(secret) // it has been checked
		}
	}
	return func(r *http.Request, body []byte, now time.Time) error {
		stamp, signatures := s.parse(r.Header)
		if len(signatures) == 0 || s.unit != 0 && stamp == "" {
			return ErrUnverified
		}
		around := [][2]string{{}}
		if s.around != nil {
			around = s.around(r, stamp)
		}
		if !s.matches(signatures, keys, around, body) {
			return ErrUnverified
		}
		if s.unit == 0 {
			return nil
		}
		at, ok := parseTimestamp(stamp, s.unit)
		if !ok {
			return ErrUnverified
		}
		if age := now.Sub(at); age > tolerance || age < -tolerance {
			return ErrStale
		}
		return nil
	}
}

// parse returns the time of signing and the signatures that h has. A header that is there twice is worth nothing: proxies
// and we could mean different ones.
func (s signature) parse(h http.Header) (stamp string, signatures [][]byte) {
	if len(h.Values(s.header)) != 1 || s.timestamp != "" && len(h.Values(s.timestamp)) != 1 {
		return "", nil
	}
	texts := []string{h.Get(s.header)}
	if s.split != nil {
		stamp, texts = s.split(h, texts[0])
	} else if s.timestamp != "" {
		stamp = h.Get(s.timestamp)
	}
	for _, text := range texts[:min(len(texts), maxSignatures)] {
		encoded, ok := strings.CutPrefix(text, s.prefix)
		if !ok || encoded == "" {
			continue
		}
		if sum, err := s.decode(encoded); err == nil {
			signatures = append(signatures, sum)
		}
	}
	return stamp, signatures
}

// matches tells whether one of the signatures is made with one of the keys. How long it takes tells nothing of them.
func (s signature) matches(signatures, keys [][]byte, around [][2]string, body []byte) bool {
	found := false
	for _, key := range keys {
		for _, text := range around {
			mac := hmac.New(s.hash, key)
			if s.plain {
				mac = s.hash()
				mac.Write(key)
			}
			mac.Write([]byte(text[0]))
			mac.Write(body)
			mac.Write([]byte(text[1]))
			sum := mac.Sum(nil)
			for _, signature := range signatures {
				if hmac.Equal(sum, signature) {
					found = true
				}
			}
		}
	}
	return found
}

// parseTimestamp reads a number of units since 1970.
func parseTimestamp(text string, unit time.Duration) (time.Time, bool) {
	if len(text) > 14 || strings.Trim(text, "0123456789") != "" {
		return time.Time{}, false
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, false
	}
	if unit == guessed {
		if unit = time.Second; len(text) > 11 {
			unit = time.Millisecond
		}
	}
	return time.UnixMilli(n * int64(unit/time.Millisecond)), true
}

// guessed is the unit of a time whose number of digits tells whether it is in seconds or in milliseconds.
const guessed = time.Duration(-1)

var hashes = map[string]func() hash.Hash{"sha256": sha256.New, "sha1": sha1.New, "sha512": sha512.New}

// described returns the scheme that settings describe.
func described(s Settings) signature {
	sig := signature{header: s.Header, prefix: s.Prefix, hash: sha256.New, decode: hex.DecodeString, timestamp: s.TimestampHeader}
	if s.Algorithm != "" {
		sig.hash = hashes[s.Algorithm]
	}
	if s.Encoding == "base64" {
		sig.decode = anyBase64
	}
	if s.TimestampHeader != "" {
		sig.unit = guessed
	}
	if s.Signed != "" {
		before, behind, _ := strings.Cut(s.Signed, "{body}")
		sig.around = func(r *http.Request, timestamp string) [][2]string {
			fill := strings.NewReplacer("{timestamp}", timestamp, "{id}", r.Header.Get(s.IDHeader))
			return [][2]string{{fill.Replace(before), fill.Replace(behind)}}
		}
	}
	return sig
}

// anyBase64 decodes both alphabets, padded or not.
func anyBase64(s string) ([]byte, error) {
	return base64.RawStdEncoding.DecodeString(strings.NewReplacer("-", "+", "_", "/", "=", "").Replace(s))
}

// checkSigned says what is wrong with a template of the signed text, or nothing.
func checkSigned(template string, hasTimestamp, hasID bool) string {
	rest := template
	seen := map[string]int{}
	for {
		_, after, ok := strings.Cut(rest, "{")
		if !ok {
			break
		}
		name, behind, ok := strings.Cut(after, "}")
		if !ok || name != "body" && name != "timestamp" && name != "id" {
			return "may have {timestamp}, {id} and {body}, and no other braces"
		}
		seen[name]++
		rest = behind
	}
	switch {
	case seen["body"] != 1:
		return "must contain {body} once"
	case seen["timestamp"] > 0 && !hasTimestamp:
		return "has {timestamp}, which needs timestamp_header"
	case seen["id"] > 0 && !hasID:
		return "has {id}, which needs id_header"
	}
	return ""
}

// basic verifies the password of a user, RFC 7617.
func basic(username string, secrets []string) verifier {
	return func(r *http.Request, _ []byte, _ time.Time) error {
		user, password, ok := r.BasicAuth()
		if len(r.Header.Values("Authorization")) == 1 && ok && user == username && among(password, secrets) {
			return nil
		}
		return ErrUnverified
	}
}

// bearer verifies a token, in a header or, as CloudEvents' "HTTP 1.1 Web Hooks for Event Delivery" has it, in Authorization
// or the parameter access_token.
func bearer(header, prefix string, secrets []string) verifier {
	return func(r *http.Request, _ []byte, _ time.Time) error {
		var token string
		switch {
		case header != "" && !strings.EqualFold(header, "Authorization"):
			if len(r.Header.Values(header)) == 1 {
				token, _ = strings.CutPrefix(r.Header.Get(header), prefix)
			}
		case len(r.Header.Values("Authorization")) == 1:
			scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
			if strings.EqualFold(scheme, strings.TrimSpace(cmp.Or(prefix, "Bearer"))) {
				token = strings.TrimSpace(rest)
			}
		case len(r.Header.Values("Authorization")) == 0:
			token = r.URL.Query().Get("access_token")
		}
		if token != "" && among(token, secrets) {
			return nil
		}
		return ErrUnverified
	}
}

// among tells whether text is one of the secrets. How long it takes tells nothing of them.
func among(text string, secrets []string) bool {
	got, found := sha256.Sum256([]byte(text)), false
	for _, secret := range secrets {
		want := sha256.Sum256([]byte(secret))
		if hmac.Equal(got[:], want[:]) {
			found = true
		}
	}
	return found
}
