// Package uid2 asks a UID2 or EUID operator what people are called there, as its "POST /v3/identity/map" says.
//
//	hashes ──► seal ──► POST /v3/identity/map ──► open ──► raw UID2s, and until when they hold
//
// Requests and good answers are encrypted with the client secret that both sides have. An answer is taken only if it carries
// the nonce of its request, so that nobody can replay another.
package uid2

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

const (
	version = 1 // of the request envelope
	most    = 5000
	patient = time.Minute // how far a request's time may be off

	// Seconds since 1970 that no answer means: such a number counts milliseconds. The operator's documentation has been
	// saying either.
	milliseconds = 100_000_000_000
)

// Operator is who maps, and what we are known by there.
type Operator struct {
	URL    string // such as https://prod.uidapi.com
	Key    string // the API key
	Secret []byte // the client secret, of 32 bytes
}

// Hash is the SHA-256 of a normalised e-mail address or phone number, in base64.
type Hash struct {
	Phone bool // else of an e-mail address
	Value string
}

// Example is an address that the documentation uses itself, for trying whether the operator answers.
var Example = Hash{Value: "tMmiiTI7IaAcPpQPFQ65uMVCWH8av9jw4cwf/F5HVRQ="}

// ID is what the operator says of a hash.
type ID struct {
	Raw      string    // the raw UID2, or "" if there is none
	Until    time.Time // for how long Raw holds at least
	OptedOut bool      // the person wants no advertising: there is none to send
}

// ParseSecret reads a client secret as operators give it.
func ParseSecret(text string) ([]byte, error) {
	secret, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil || len(secret) != 32 {
		return nil, errors.New("must be the base64 of 32 bytes")
	}
	return secret, nil
}

// Map asks what people are called. IDs[i] belongs to hashes[i].
//
//	the key is unknown                   Reauth
//	the request could not be read        Config: the client secret is another; Retry if the clocks differ
//	the answer is none to our request    Retry
func (o Operator) Map(ctx context.Context, client *http.Client, hashes []Hash) ([]ID, activation.Outcome) {
	ids := make([]ID, 0, len(hashes))
	for len(hashes) > 0 {
		part := hashes[:min(most, len(hashes))]
		hashes = hashes[len(part):]
		some, out := o.ask(ctx, client, part)
		if out.Class != activation.OK {
			return nil, out
		}
		ids = append(ids, some...)
	}
	return ids, activation.Outcome{Class: activation.OK, Status: http.StatusOK}
}

type question struct {
	Emails []string `json:"email_hash,omitzero"`
	Phones []string `json:"phone_hash,omitzero"`
}

type answer struct {
	Status string `json:"status"`
	Body   struct {
		Emails []mapped `json:"email_hash"`
		Phones []mapped `json:"phone_hash"`
	} `json:"body"`
}

type mapped struct {
	Raw     string `json:"u"`
	Refresh int64  `json:"r"`
	Error   string `json:"e"`
}

func (o Operator) ask(ctx context.Context, client *http.Client, hashes []Hash) ([]ID, activation.Outcome) {
	var q question
	for _, h := range hashes {
		if h.Phone {
			q.Phones = append(q.Phones, h.Value)
		} else {
			q.Emails = append(q.Emails, h.Value)
		}
	}
	body, nonce, err := o.seal(q, time.Now())
	if err != nil {
		return nil, activation.Outcome{Class: activation.Config, Reason: "the UID2 client secret cannot be used"}
	}
	a, out := wire.Do(ctx, client, wire.Request{
		Method: http.MethodPost, URL: strings.TrimSuffix(o.URL, "/") + "/v3/identity/map", Body: body,
		Header: http.Header{"Authorization": {"Bearer " + o.Key}, "Content-Type": {"text/plain"}},
	})
	out.Unknown = false // nothing is changed by asking
	if out.Class != activation.OK {
		return nil, o.refused(a, out)
	}
	out.Excerpt = "" // nobody can read it
	var got answer
	if err := o.open(a.Body, nonce, &got); err != nil {
		out.Class, out.Reason = activation.Retry, "the UID2 operator's answer is none to the request"
		return nil, out
	}
	if got.Status != "success" || len(got.Body.Emails) != len(q.Emails) || len(got.Body.Phones) != len(q.Phones) {
		out.Class, out.Reason = activation.Retry, "the UID2 operator's answer is not what it promises"
		return nil, out
	}
	ids := make([]ID, len(hashes))
	for i, h := range hashes {
		from := &got.Body.Emails
		if h.Phone {
			from = &got.Body.Phones
		}
		ids[i] = (*from)[0].id()
		*from = (*from)[1:]
	}
	return ids, out
}

func (m mapped) id() ID {
	switch {
	case strings.EqualFold(m.Error, "optout"):
		return ID{OptedOut: true}
	case m.Error != "" || m.Raw == "":
		return ID{}
	case m.Refresh > milliseconds:
		return ID{Raw: m.Raw, Until: time.UnixMilli(m.Refresh)}
	default:
		return ID{Raw: m.Raw, Until: time.Unix(m.Refresh, 0)}
	}
}

// refused says what it means that the operator did not answer the question. Errors are not encrypted.
func (o Operator) refused(a wire.Answer, out activation.Outcome) activation.Outcome {
	switch out.Class {
	case activation.Reauth:
		out.Reason = "the UID2 API key was refused"
	case activation.Split: // whether a hash is good is told for each: it is the request that is not
		out.Class = activation.Config
		out.Reason = "the UID2 operator could not read the request: the client secret may be another key's"
		if at, err := http.ParseTime(a.Header.Get("Date")); err == nil && time.Since(at).Abs() > patient {
			out.Class, out.Reason = activation.Retry, "the UID2 operator's clock differs from ours by more than a minute"
		}
	case activation.Config:
		if a.Status != 0 {
			out.Reason = "the UID2 operator refused: " + out.Reason
		}
	default:
		out.Reason = "the UID2 operator: " + out.Reason
	}
	return out
}

// seal encrypts a request: a version, 12 bytes of initialisation vector, and, with AES-256-GCM, the time in milliseconds, a
// nonce of 8 bytes, and JSON; all of it in base64.
func (o Operator) seal(q question, now time.Time) (body []byte, nonce [8]byte, err error) {
	gcm, err := o.gcm()
	if err != nil {
		return nil, nonce, err
	}
	text, err := json.Marshal(q)
	if err != nil {
		return nil, nonce, fmt.Errorf("encode a request to the operator: %w", err)
	}
	rand.Read(nonce[:])
	plain := binary.BigEndian.AppendUint64(nil, uint64(now.UnixMilli()))
	plain = append(append(plain, nonce[:]...), text...)
	envelope := make([]byte, 1+gcm.NonceSize(), 1+gcm.NonceSize()+len(plain)+gcm.Overhead())
	envelope[0] = version
	iv := envelope[1:]
	rand.Read(iv)
	envelope = gcm.Seal(envelope, iv, plain, nil)
	return base64.StdEncoding.AppendEncode(nil, envelope), nonce, nil
}

var errForged = errors.New("the answer is none to the request")

// open decrypts an answer, which has no version, and holds it to the nonce of the request.
func (o Operator) open(body []byte, nonce [8]byte, into any) error {
	gcm, err := o.gcm()
	if err != nil {
		return err
	}
	envelope, err := base64.StdEncoding.AppendDecode(nil, body)
	if err != nil || len(envelope) < gcm.NonceSize() {
		return errForged
	}
	plain, err := gcm.Open(nil, envelope[:gcm.NonceSize()], envelope[gcm.NonceSize():], nil)
	if err != nil || len(plain) < 16 || [8]byte(plain[8:16]) != nonce {
		return errForged
	}
	return json.Unmarshal(plain[16:], into)
}

func (o Operator) gcm() (cipher.AEAD, error) {
	block, err := aes.NewCipher(o.Secret)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
