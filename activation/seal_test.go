package activation

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
)

// sealedBefore is "canary", sealed for destinations.secrets 7 by the first version of this package.
const sealedBefore = "AQJrMRh7LlOskoo41ZlmIDLq8r1FTdqmzXtit1JLOdZ2NbjWdwQ="

var (
	one = "k1:" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1}, 32))
	two = "k2:" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{2}, 32))
)

func ringOf(t *testing.T, s string) *KeyRing {
	t.Helper()
	r, err := ParseKeyRing(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestKeyRing(t *testing.T) {
	t.Parallel()
	ring := func(s string) *KeyRing { return ringOf(t, s) }
	here := Place{Workspace: 3, Table: "destinations", Column: "secrets", ID: 7}
	sealed := ring(one).Seal(here, []byte("canary"))
	if bytes.Contains(sealed, []byte("canary")) {
		t.Error("the sealed value shows its secret")
	}

	t.Run("a value opens under any key of the ring", func(t *testing.T) {
		t.Parallel()
		rotated := ring(two + ", " + one)
		got, err := rotated.Open(here, sealed)
		if err != nil || string(got) != "canary" {
			t.Errorf("Open = %q, %v", got, err)
		}
		if got, err := ring(two).Open(here, rotated.Seal(here, got)); err != nil || string(got) != "canary" {
			t.Errorf("what is sealed anew does not open under the first key: %q, %v", got, err)
		}
	})
	t.Run("a value of the time before workspaces opens", func(t *testing.T) {
		t.Parallel()
		old, err := base64.StdEncoding.DecodeString(sealedBefore)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ring(one).Open(here, old); err != nil || string(got) != "canary" {
			t.Errorf("Open = %q, %v", got, err)
		}
	})
	t.Run("a value does not open", func(t *testing.T) {
		t.Parallel()
		for name, open := range map[string]func() ([]byte, error){
			"in another workspace": func() ([]byte, error) { return ring(one).Open(Place{4, "destinations", "secrets", 7}, sealed) },
			"in another row":       func() ([]byte, error) { return ring(one).Open(Place{3, "destinations", "secrets", 8}, sealed) },
			"in another column":    func() ([]byte, error) { return ring(one).Open(Place{3, "destinations", "config", 7}, sealed) },
			"as what it was before values had a workspace": func() ([]byte, error) {
				return ring(one).Open(here, append([]byte{sealedAnywhere}, sealed[1:]...))
			},
			"without its key":   func() ([]byte, error) { return ring(two).Open(here, sealed) },
			"once cut":          func() ([]byte, error) { return ring(one).Open(here, sealed[:len(sealed)-1]) },
			"if empty":          func() ([]byte, error) { return ring(one).Open(here, nil) },
			"if its key is cut": func() ([]byte, error) { return ring(one).Open(here, sealed[:3]) },
			"if its text is cut": func() ([]byte, error) {
				return ring(one).Open(here, sealed[:6])
			},
		} {
			if got, err := open(); !errors.Is(err, ErrSealed) {
				t.Errorf("%s: Open = %q, %v, want ErrSealed", name, got, err)
			}
		}
	})
	t.Run("a ring is refused", func(t *testing.T) {
		t.Parallel()
		for _, s := range []string{"", "k1", ":AAAA", "k1:AAAA", one + "," + one, one + ",", "k1:" + strings.Repeat("!", 44)} {
			if _, err := ParseKeyRing(s); err == nil {
				t.Errorf("ParseKeyRing(%q) succeeded", s)
			} else if strings.Contains(err.Error(), "AAAA") {
				t.Errorf("ParseKeyRing(%q): the error shows the key: %v", s, err)
			}
		}
	})
}

func TestRenewSealsUnderTheNewestKey(t *testing.T) {
	t.Parallel()
	ring := func(s string) *KeyRing { return ringOf(t, s) }
	here := Place{Workspace: 3, Table: "tombstone_keys", Column: "key", ID: 3}
	sealed := ring(one).Seal(here, []byte("canary"))
	fresh, err := ring(two+","+one).Renew(here, sealed)
	if err != nil || fresh == nil {
		t.Fatalf("sealed under an older key: %x, %v", fresh, err)
	}
	if got, err := ring(two).Open(here, fresh); err != nil || string(got) != "canary" {
		t.Errorf("sealed anew it opens as %q, %v", got, err)
	}
	if again, err := ring(two+","+one).Renew(here, fresh); err != nil || again != nil {
		t.Errorf("sealed under the newest key already: %x, %v", again, err)
	}
	if _, err := ring(two).Renew(here, sealed); !errors.Is(err, ErrSealed) {
		t.Errorf("without its key: %v", err)
	}
}
