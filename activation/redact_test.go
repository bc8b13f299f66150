package activation

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestRedact(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"error":"no such list","code":17}`:                        `{"error":"no such list","code":17}`,
		`unknown user ada.lovelace+x@example.com!`:                  `unknown user …`,
		`{"email":"ada@example.com","why":"bad"}`:                   `{"email":"…","why":"bad"}`,
		`call +49 (0)171 1234567 now`:                               `call … now`,
		`dial tcp 10.1.2.3:443: refused`:                            `dial tcp …: refused`,
		"line one\r\n\tline two\x00":                                `line one line two`,
		"token=abcdefghijklmnopqrstuvwxyz0123456789":                `…`,
		"b4c9a289323b21a01c3e940f150eb9b8c542587f1abfd8f0e1cc1ffc5": `…`,
		"bad \xff\xfe bytes":                                        `bad bytes`,
		"fe80::1ff:fe23:4567:890a is not allowed":                   `… is not allowed`,
		"": "",
	} {
		if got := Redact([]byte(in)); got != want {
			t.Errorf("Redact(%q) = %q, want %q", in, got, want)
		}
	}
	long := Redact([]byte(strings.Repeat("ä ", 5000)))
	if len(long) > MaxExcerpt || len(long) < MaxExcerpt-4 || !utf8.ValidString(long) {
		t.Errorf("a long answer is cut to %d bytes, valid: %t", len(long), utf8.ValidString(long))
	}
}

func FuzzRedact(f *testing.F) {
	f.Add([]byte("ada@example.com \xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := Redact(in)
		if len(s) > MaxExcerpt || !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
			t.Errorf("Redact(%q) = %q", in, s)
		}
	})
}
