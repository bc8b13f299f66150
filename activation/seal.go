package activation

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// KeyRing seals secrets for storage, with AES-256-GCM. New ones are sealed under its first key; whatever was sealed under
// another opens as long as that key is in the ring. The id of the key is stored in front of the ciphertext.
type KeyRing struct {
	first string
	keys  map[string]cipher.AEAD
}

// ParseKeyRing reads "k2:<base64 of 32 bytes>,k1:…". The first key is the one to seal with.
func ParseKeyRing(s string) (*KeyRing, error) {
	r := &KeyRing{keys: map[string]cipher.AEAD{}}
	for i, entry := range strings.Split(s, ",") {
		id, encoded, ok := strings.Cut(strings.TrimSpace(entry), ":")
		if !ok || id == "" || len(id) > 255 {
			return nil, fmt.Errorf("encryption key %d is not of the form id:base64", i+1)
		}
		if _, ok := r.keys[id]; ok {
			return nil, fmt.Errorf("encryption key %q is given twice", id)
		}
		key, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil || len(key) != 32 {
			return nil, fmt.Errorf("encryption key %q is not the base64 of 32 bytes", id)
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, fmt.Errorf("encryption key %q: %w", id, err)
		}
		if r.keys[id], err = cipher.NewGCM(block); err != nil {
			return nil, fmt.Errorf("encryption key %q: %w", id, err)
		}
		if i == 0 {
			r.first = id
		}
	}
	return r, nil
}

// NewKeyRing returns a ring of one new key, and its text for [ParseKeyRing].
func NewKeyRing() (*KeyRing, string, error) {
	var key [32]byte
	rand.Read(key[:])
	text := "k1:" + base64.StdEncoding.EncodeToString(key[:])
	r, err := ParseKeyRing(text)
	return r, text, err
}

// Place is where a sealed value is stored, and whose it is. It opens nowhere else, so that nobody who can write to the
// database can have one destination, or one workspace, use another's secrets.
type Place struct {
	Workspace int32
	Table     string
	Column    string
	ID        int64
}

// The first byte of a sealed value says what it is bound to. Values of version 1, which are not bound to a workspace, still
// open; nothing seals them any more.
const (
	sealedAnywhere  = 1
	sealedWorkspace = 2
)

func (p Place) bytes(version byte) []byte {
	if version == sealedAnywhere {
		return fmt.Appendf(nil, "%s\x00%s\x00%d", p.Table, p.Column, p.ID)
	}
	return fmt.Appendf(nil, "%d\x00%s\x00%s\x00%d", p.Workspace, p.Table, p.Column, p.ID)
}

// Seal returns plaintext sealed for p.
func (r *KeyRing) Seal(p Place, plaintext []byte) []byte {
	aead := r.keys[r.first]
	out := make([]byte, 0, 2+len(r.first)+aead.NonceSize()+len(plaintext)+aead.Overhead())
	out = append(out, sealedWorkspace, byte(len(r.first)))
	out = append(out, r.first...)
	nonce := out[len(out) : len(out)+aead.NonceSize()]
	rand.Read(nonce)
	return aead.Seal(out[:len(out)+aead.NonceSize()], nonce, plaintext, p.bytes(sealedWorkspace))
}

// ErrSealed says that a sealed value does not open: its key is not in the ring, or it is not what was sealed for its place.
var ErrSealed = errors.New("the sealed value does not open with these keys")

// Open returns what was sealed for p.
func (r *KeyRing) Open(p Place, sealed []byte) ([]byte, error) {
	id, rest, ok := keyID(sealed)
	if !ok {
		return nil, fmt.Errorf("open %s.%s %d: not a sealed value: %w", p.Table, p.Column, p.ID, ErrSealed)
	}
	aead, ok := r.keys[id]
	if !ok {
		return nil, fmt.Errorf("open %s.%s %d: key %q is not in the ring: %w", p.Table, p.Column, p.ID, id, ErrSealed)
	}
	if len(rest) < aead.NonceSize() {
		return nil, fmt.Errorf("open %s.%s %d: too short: %w", p.Table, p.Column, p.ID, ErrSealed)
	}
	plaintext, err := aead.Open(nil, rest[:aead.NonceSize()], rest[aead.NonceSize():], p.bytes(sealed[0]))
	if err != nil {
		return nil, fmt.Errorf("open %s.%s %d: %w", p.Table, p.Column, p.ID, ErrSealed)
	}
	return plaintext, nil
}

// Renew returns what was sealed for p under an older key sealed anew under the first one, or nil if it is already.
func (r *KeyRing) Renew(p Place, sealed []byte) ([]byte, error) {
	plaintext, err := r.Open(p, sealed)
	if err != nil {
		return nil, err
	}
	if id, _, _ := keyID(sealed); id == r.first && sealed[0] == sealedWorkspace {
		return nil, nil
	}
	return r.Seal(p, plaintext), nil
}

func keyID(sealed []byte) (id string, rest []byte, ok bool) {
	if len(sealed) < 2 || sealed[0] != sealedAnywhere && sealed[0] != sealedWorkspace || len(sealed) < 2+int(sealed[1]) {
		return "", nil, false
	}
	n := 2 + int(sealed[1])
	return string(sealed[2:n]), sealed[n:], true
}
